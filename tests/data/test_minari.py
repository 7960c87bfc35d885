"""Minari datasets, made by Minari itself."""

import sys

import h5py
import numpy as np
import pytest
from data_factory import make_columns

from spi_diffusers.data.columns import DatasetError
from spi_diffusers.data.convert import convert_dataset
from spi_diffusers.data.loading import load_transitions
from spi_diffusers.data.roles import ColumnNames
from spi_diffusers.data.tasks import get_task
from spi_diffusers.data.transitions import TransitionDataset

BALL = get_task("ballcircle")


def convert(source, folder, **options):
    return {part.config: part.dataset for part in convert_dataset(source, folder, **options)}


def minari_dataset(
    monkeypatch, folder, *, infos=True, start_info=True, nested=False, space=None, actions=None
):
    """Five steps in two episodes; `nested`: observations in a Dict, the cost in an entry of the infos."""
    minari = pytest.importorskip("minari", reason="pip install 'spi-diffusers[minari]'")
    import gymnasium
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    columns = make_columns(lengths=(3, 2), terminated=(1,))
    buffers = []
    for k, (first, end) in enumerate([(0, 3), (3, 5)]):
        rows = slice(first, end)
        cost = columns["cost"][rows].astype(np.float64)
        cost = np.append(9.0, cost) if start_info else cost
        observations = np.concatenate(
            [columns["observation"][rows], columns["next_observation"][end - 1 : end]]
        )
        if nested:
            observations = {"speed": observations[:, 6:], "joints": {"right": observations[:, 2:6]}}
            observations["joints"]["left"] = np.concatenate(
                [columns["observation"][rows], columns["next_observation"][end - 1 : end]]
            )[:, :2]
        buffers.append(
            EpisodeBuffer(
                id=k,
                observations=observations,
                actions=columns["action"][rows] if actions is None else actions(columns["action"][rows]),
                rewards=list(columns["reward"][rows].astype(np.float64)),
                terminations=list(columns["terminated"][rows]),
                truncations=[False] * (end - first),  # never marked: the last step is the end
                infos=None if not infos else {"safety": {"damage": cost}} if nested else {"cost": cost},
            )
        )

    def box(size):
        return gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    minari.create_dataset_from_buffers(
        "test/ball-v0",
        buffers,
        action_space=space or gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        observation_space=gymnasium.spaces.Dict(
            speed=box(2), joints=gymnasium.spaces.Dict(right=box(4), left=box(2))
        )
        if nested
        else box(8),
        algorithm_name="none",
        author="a test",
        author_email="test@example.org",
        code_permalink="none",
        description="A test's dataset.",
    )
    return columns


@pytest.mark.parametrize("start_info", [True, False])
def test_minari_by_id_and_by_folder(monkeypatch, tmp_path, start_info):
    columns = minari_dataset(monkeypatch, tmp_path / "minari", start_info=start_info)
    expected = TransitionDataset.from_columns(columns).sha256
    by_id = convert("minari:test/ball-v0", tmp_path / "set", tasks=["ballcircle"])
    assert by_id[BALL.name].sha256 == load_transitions(tmp_path / "set").sha256 == expected
    folder = tmp_path / "minari" / "test" / "ball-v0"
    for path in (folder, folder / "data"):
        assert convert(path, tmp_path / "two", name="mine", overwrite=True)["mine"].sha256 == expected
    with pytest.raises(DatasetError, match=r"no column 'damage' for the cost \(--cost-.*'infos/cost'"):
        convert(folder, tmp_path / "x", name="mine", columns=ColumnNames(cost="damage"))


def test_minari_with_nested_observations_and_infos(monkeypatch, tmp_path):
    """Entries of a Dict are one vector, in alphabetical order of their paths."""
    columns = minari_dataset(monkeypatch, tmp_path / "minari", nested=True)
    damage = ColumnNames(cost="infos/safety/damage")
    written = convert("minari:test/ball-v0", tmp_path / "set", tasks=[BALL], columns=damage)[BALL.name]
    assert written.sha256 == TransitionDataset.from_columns(columns).sha256  # left, right, speed
    with pytest.raises(DatasetError, match=r"for the cost \(--cost.*'infos/safety/damage'"):
        load_transitions("minari:test/ball-v0", BALL)
    some = ColumnNames(observation=("observations/joints/*",), cost="infos/safety/damage")
    written = convert("minari:test/ball-v0", tmp_path / "two", name="arm", columns=some)["arm"]
    for name in ("observation", "next_observation"):
        assert getattr(written.transitions, name).tolist() == columns[name][:, :6].tolist()


def test_minari_files_that_link_to_others_are_refused(monkeypatch, tmp_path):
    minari_dataset(monkeypatch, tmp_path / "minari")
    (file,) = (tmp_path / "minari").rglob("*.hdf5")
    with h5py.File(file, "a") as store, h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["rewards"] = store["episode_0/rewards"][()]
        del store["episode_0/rewards"]
        store["episode_0/rewards"] = h5py.ExternalLink(str(tmp_path / "other.hdf5"), "/rewards")
    with pytest.raises(DatasetError, match="'episode_0/rewards' keeps its values in another file"):
        load_transitions("minari:test/ball-v0")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for source in ("minari:test/ball-v0", tmp_path / "minari" / "test" / "ball-v0"):
        with pytest.raises(DatasetError, match="Git LFS pointer"):
            load_transitions(source)


def test_minari_that_is_larger_than_memory_is_not_read(monkeypatch, tmp_path, little_memory):
    minari_dataset(monkeypatch, tmp_path / "minari")
    (file,) = (tmp_path / "minari").rglob("*.hdf5")
    with h5py.File(file, "a") as store:  # sparse: nothing of it is in the file
        store.create_dataset("episode_0/infos/picture", shape=(10**6, 64), dtype="u1", chunks=(1 << 10, 64))
    with pytest.raises(DatasetError, match=r"minari:test/ball-v0: needs 0\.1 GB of memory, and 0\.0 GB are"):
        load_transitions("minari:test/ball-v0")


def test_minari_without_infos(monkeypatch, tmp_path):
    minari_dataset(monkeypatch, tmp_path / "minari", infos=False)
    with pytest.raises(DatasetError, match=r"no episode has infos.*record_infos=True"):
        convert("minari:test/ball-v0", tmp_path / "set", tasks=["ballcircle"])


def test_minari_that_is_not_installed_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'spi-diffusers\[minari\]'"):
        convert("minari:lab/arm-v0", tmp_path / "set", name="arm")
    with pytest.raises(DatasetError, match="say which one task the Minari dataset belongs to"):
        convert("minari:lab/arm-v0", tmp_path / "set")
    (tmp_path / "m" / "data").mkdir(parents=True)
    (tmp_path / "m" / "data" / "metadata.json").write_text("{}")
    with pytest.raises(ImportError, match="pip install"):
        convert(tmp_path / "m", tmp_path / "set", name="arm")


def test_the_range_of_actions_is_that_of_the_action_space(monkeypatch, tmp_path):
    spaces = pytest.importorskip("gymnasium").spaces
    box = spaces.Box(np.float32([-1, -2]), np.float32([1, 5]), (2,), np.float32)
    minari_dataset(monkeypatch, tmp_path / "minari", space=box)
    convert("minari:test/ball-v0", tmp_path / "set", name="x")
    data = load_transitions(tmp_path / "set")
    assert data.action_range == ((-1, -2), (1, 5))


def test_parts_of_a_nested_action_space_follow_each_other_as_their_values_do(monkeypatch, tmp_path):
    spaces = pytest.importorskip("gymnasium").spaces
    nested = spaces.Dict(wheel=spaces.Box(-3, 3, (1,)), gas=spaces.Box(0, 2, (1,)))
    minari_dataset(
        monkeypatch,
        tmp_path / "minari",
        space=nested,
        actions=lambda values: {"wheel": values[:, :1], "gas": values[:, 1:]},
    )
    data = load_transitions("minari:test/ball-v0")
    assert data.action_range == ((0, -3), (2, 3))  # gas, then wheel


def test_an_unbounded_action_space_states_no_range(monkeypatch, tmp_path):
    spaces = pytest.importorskip("gymnasium").spaces
    minari_dataset(monkeypatch, tmp_path / "minari", space=spaces.Box(-np.inf, np.inf, (2,)))
    assert load_transitions("minari:test/ball-v0").action_range is None


@pytest.mark.parametrize("kind", ["Discrete", "MultiBinary", "Box of integers"])
def test_discrete_action_spaces_are_refused(monkeypatch, tmp_path, kind):
    spaces = pytest.importorskip("gymnasium").spaces
    space = {
        "Discrete": spaces.Discrete(3),
        "MultiBinary": spaces.MultiBinary(2),
        "Box of integers": spaces.Box(0, 3, (2,), np.int64),
    }[kind]
    size = () if kind == "Discrete" else (2,)
    minari_dataset(
        monkeypatch,
        tmp_path / "minari",
        space=space,
        actions=lambda values: np.ones((len(values), *size), dtype=space.dtype),
    )
    with pytest.raises(DatasetError, match=r"ball-v0: actions are of the space .*continuous actions only"):
        load_transitions("minari:test/ball-v0")


def test_of_named_actions_the_action_space_tells_nothing(monkeypatch, tmp_path):
    spaces = pytest.importorskip("gymnasium").spaces
    mixed = spaces.Dict(wheel=spaces.Box(-3, 3, (1,)), gear=spaces.Discrete(4))
    minari_dataset(
        monkeypatch,
        tmp_path / "minari",
        space=mixed,
        actions=lambda values: {"wheel": values[:, :1], "gear": np.ones(len(values), dtype=np.int64)},
    )
    named = ColumnNames(action=("actions/wheel",))
    (data,) = convert("minari:test/ball-v0", tmp_path / "set", name="x", columns=named).values()
    assert (data.action_dim, data.action_range) == (1, None)
    with pytest.raises(DatasetError, match=r"actions/gear are of the space Discrete\(4\)"):
        load_transitions("minari:test/ball-v0")
