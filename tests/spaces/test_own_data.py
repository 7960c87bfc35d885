import numpy as np
import pytest

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.spaces.own_data import as_html, describe, numbers, train_and_assess


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Twenty episodes of twenty steps; an episode costs 0 to 5,000 times its number."""
    file = tmp_path_factory.mktemp("data") / "log.csv"
    rng = np.random.default_rng(0)
    rows = [
        f"{rng.normal():.3f},{rng.uniform(-1, 1):.3f},1,{5000 * (row // 20) / 20:g},{row // 20}"
        for row in range(400)
    ]
    file.write_text("\n".join(["observation_0,action_0,reward,cost,episode", *rows]))
    return file


def test_a_file_is_described_with_its_picture(log):
    found = describe(log, [50_000])
    text = as_html(found.tables, found.remarks)
    assert "log.csv: 20 episodes, 400 transitions" in text
    assert str(log.parent) not in text
    assert found.picture.shape[2] == 3
    assert len({*found.picture.reshape(-1)}) > 10, "something is drawn"
    # Episodes 0 to 10 cost 5,000 times their number.
    assert "11 │ 55.0%" in text


def test_a_brief_training_is_assessed_by_held_out_episodes(log):
    told = []
    assessment = train_and_assess(
        log, cost_limits=[20_000], risk=0.2, updates=4, on_update=lambda *where: told.append(where)
    )
    assert (assessment.held_out, assessment.episodes, assessment.risk) == (True, 2, 0.2)
    assert assessment.dataset["id"] == "log.csv"
    assert [row.cost_limit for row in assessment.limits] == [20_000]
    assert told[-1] == (4, 4)


def test_what_cannot_be_used_is_refused(log, tmp_path):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(DatasetError, match=r"broken\.parquet"):
        describe(broken)
    with pytest.raises(ValueError, match="a cost limit must be a finite number"):
        describe(log, [-1.0])
    with pytest.raises(ValueError, match="at most 5,000 on this page, got 5,001"):
        train_and_assess(log, risk=0.1, updates=5001)


def test_nothing_in_a_table_becomes_markup(log):
    assert "<script>" not in as_html([], ["<script>alert()</script>"])


def test_limits_are_read_from_a_text():
    assert numbers("10, 0.003  5e3") == [10, 0.003, 5000]
    assert numbers(" ") == []
    with pytest.raises(ValueError, match="cost limits must be numbers, such as 10 20 40; got 'ten'"):
        numbers("10 ten")
