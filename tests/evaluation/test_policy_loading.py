import pytest

from spi_diffusers.files import short_name


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("outputs/demo", "demo"),
        ("outputs/demo/policy", "demo"),
        (".", "demo"),
        ("lab/spi-ball", "spi-ball"),
        ("lab/policy", "policy"),
    ],
)
def test_a_policy_is_called_after_its_run_or_its_repository(tmp_path, monkeypatch, policy, expected):
    (tmp_path / "outputs" / "demo" / "policy").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outputs" / "demo" / "policy" if policy == "." else tmp_path)
    assert short_name(policy) == expected
