"""The card says what the results say, no more and no less."""

import json
import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from policy_factory import (
    BALL,
    ENTRIES,
    INFO,
    edit_json,
    make_assessment,
    make_certificate,
    make_entry,
    make_run,
    write_json,
)

from spi_diffusers.cli import main
from spi_diffusers.evaluation.entries import DivergedRun
from spi_diffusers.evaluation.results import read_results, write_results
from spi_diffusers.hub.card import eval_results_yaml, policy_card
from spi_diffusers.hub.policy_files import read_policy_files
from spi_diffusers.hub.publish import assemble


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def card(run, *entries):
    if entries:
        write_results(run / "evaluation" / "results.json", entries)
    return policy_card(read_policy_files(run), "org/spi-ball")


def test_a_repository_is_called_by_its_id_whatever_lies_in_the_current_folder(run, tmp_path, monkeypatch):
    expected = card(run)
    assert "\n# spi-ball\n" in expected
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "spi-ball").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert card(run) == expected
    assert "\n# policy\n" in policy_card(read_policy_files(run), "org/policy")


def section(text, title):
    return re.search(rf"## {title}\n(.*?)\n## ", text, re.DOTALL)[1].strip()


def rows(text):
    lines = [line for line in section(text, "Results").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_table_holds_the_results(run):
    # By hand: mean 620, deviation 40 / sqrt 2; cost 6 +- 4 / sqrt 2, over the limit of 10.
    low, high = BALL.reward_min, BALL.reward_max
    reward, spread = (620 - low) / (high - low), 28.284 / (high - low)
    first, *_ = rows(card(run))
    assert first[0:4] == ["10", "safe extraction, cost fed back", "620 ± 28", "6.0 ± 2.8"]
    assert first[4:] == [f"{reward:.2f} ± {spread:.2f}", "0.60 ± 0.28", "yes", "100%"]
    kept = [(row[0], row[1].split(",")[0], row[6], row[7]) for row in rows(card(run))]
    assert kept == [
        ("10", "safe extraction", "yes", "100%"),
        ("10", "reward extraction", "**no**", "0%"),
        ("20", "safe extraction", "yes", "50%"),
        ("40", "safe extraction", "**no**", "50%"),
    ]


def test_what_was_played_is_said(run):
    text = section(card(run), "Results")
    assert "cost limits of 10, 20, 40 per episode; nothing is known about other limits" in text
    assert "2 episodes per limit" in text
    assert "evaluation seeds 1000. One training seed, 0." in text
    assert "standard deviation over episodes" in text


def test_failures_are_computed(run):
    assert section(card(run), "Known failures").splitlines() == [
        "* Cost limit 10, reward extraction: **the limit was not kept**. The mean cost was 62.0, and 100% of "
        "2 episodes exceeded the limit.",
        "* Cost limit 20, safe extraction, cost fed back: kept on average, but 50% of 2 episodes exceeded "
        "the limit.",
        "* Cost limit 40, safe extraction, cost fed back: **the limit was not kept**. The mean cost was "
        "45.0, and 50% of 2 episodes exceeded the limit.",
        "* Extraction by reward alone (Eq. 12 of the paper, here at a safety weight of 0.5) does not look at "
        "the limit.",
    ]
    good = card(run, ENTRIES[0])
    assert section(good, "Known failures") == "* No limit was exceeded: all 2 episodes stayed within theirs."


def test_limits_that_do_not_bind_are_said_to_test_nothing(run):
    same = [make_entry([600, 640], [1, 2], limit) for limit in (10, 20)]
    assert "The limits tested do not bind" in section(card(run, *same), "Known failures")
    assert "at a mean cost of 1.5." in section(card(run, *same), "Known failures")
    other = [make_entry([600, 640], [1, 2], 10), make_entry([600, 660], [1, 2], 20)]
    assert "do not bind" not in card(run, *other)
    assert "do not bind" not in card(run, same[0])


def test_several_seeds(run):
    text = card(run, make_entry([600, 600], [4, 4]), make_entry([700, 700], [12, 12], train_seed=2))
    assert "Figures are means over training seeds 0, 2; the weights here are those of seed 0." in text
    assert "standard deviation over training seeds" in text
    (row,) = rows(text)
    assert row[2:4] == ["650 ± 71", "8.0 ± 5.7"]
    assert row[-1] == "12.0"
    assert (
        "kept on average, but not by every training seed; the worst one's mean cost was 12.0, and 50% of 4"
        in section(text, "Known failures")
    )


def test_a_training_that_diverged_is_said_and_stays_in_the_published_results(run):
    path = run / "evaluation" / "results.json"
    lost = DivergedRun(
        BALL.name, "spi", None, 7, "Training diverged: loss is nan after update 9. See /home/me."
    )
    other = DivergedRun(BALL.name, "cpq", 10.0, 3, "of another algorithm")
    write_results(path, read_results(path), [lost, other])
    text = section(card(run), "Known failures")
    told = "* Training seed 7 is in no figure here: Training diverged: loss is nan after update 9."
    assert told in text.splitlines()
    assert "another algorithm" not in text
    published = assemble(read_policy_files(run), "org/spi")["results.json"]
    assert [entry["train_seed"] for entry in json.loads(published)["diverged"]] == [7]


def test_without_results_the_card_says_so(tmp_path):
    run = make_run(tmp_path / "run", entries=())
    text = card(run)
    assert "**This policy has not been evaluated.**" in section(text, "Results")
    assert section(text, "Known failures") == "* Unknown, as it has not been evaluated."
    assert "|" not in section(text, "Results")
    assert ModelCard(text).data.eval_results is None
    assert eval_results_yaml(read_policy_files(run)) is None


def test_metadata_are_read_back(run):
    data = ModelCard(card(run)).data
    assert (data.library_name, data.pipeline_tag, data.license) == (
        "spi-diffusers",
        "reinforcement-learning",
        "apache-2.0",
    )
    assert data.model_name == "spi-ball"
    found = {
        (result.metric_type, result.metric_args["cost_limit"], result.metric_args["extraction"]): result
        for result in data.eval_results
    }
    assert len(found) == 16
    cost = found["mean_cost", 40.0, "safe"]
    assert (cost.metric_value, cost.dataset_name) == (45.0, BALL.name)
    assert cost.metric_args["spread"] == pytest.approx(7.0711)
    assert (cost.metric_args["episodes"], cost.metric_args["train_seeds"]) == (2, [0])


def test_eval_results_are_read_back(run):
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(read_policy_files(run))))
    values = {entry.task_id: entry for entry in entries}
    assert len(entries) == len(values) == 6
    cost = values[f"{BALL.name}-limit-10-normalized-cost"]
    assert cost.value == 0.6  # of safe extraction, not of reward extraction
    assert "safe extraction, cost fed back; ± 0.2828; 2 episodes, training seeds 0; limit kept" in cost.notes
    assert "limit not kept" in values[f"{BALL.name}-limit-40-normalized-cost"].notes


def test_what_was_assessed_is_shown(run):
    assert "What to expect" not in card(run)
    make_assessment(run)
    text = section(card(run), "What to expect, from data alone")
    assert f"Estimated from 40 held-out episodes (8,000 steps) of {INFO['dataset']['id']}" in text
    assert "at a risk of 0.05" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert table[1:] == [
        "| 10 | 600 (551 to 640) | 7.50 (5.00 to 9.25) | 90% | 7% |",
        "| 20 | 600 (551 to 640) | 7.50 (5.00 to 9.25) | 100% | ? |",
    ]
    assert (
        "* The smallest limit that fits at 95% of the starts is 12.5, at a risk of 0.05.\n* Warning: " in text
    )
    assert "results.json, assessment.json and train_info.json" in card(run)


def test_what_was_assessed_of_other_weights_is_left_out(run, caplog):
    make_assessment(run, policy={**make_assessment(run).policy, "train_seconds": 99.0})
    assert "What to expect" not in card(run)
    assert "assessment.json: is of other weights or another cost_margin, and is left out" in caplog.text
    caplog.clear()
    make_assessment(run, cost_margin=2.0)
    assert "What to expect" not in card(run)
    assert "assessment.json: is of other" in caplog.text
    (run / "policy" / "assessment.json").write_text("{}")
    with pytest.raises(ValueError, match=r"assessment\.json: format_version must be 1, got None"):
        card(run)


def test_a_certificate_is_shown(run):
    assert "## Certificate" not in card(run)
    make_certificate(run)
    text = section(card(run), "Certificate")
    assert [line for line in text.splitlines() if line.startswith("| ")] == [
        "| cost limit | episodes over | share over <= (95%) | mean cost | mean cost <= (95%) | "
        "90% cost at most | worst cost | mean return |",
        "| 10 | 1 of 100 | 4.7% | 6.0 | 13.1 | 8.0 | 12.0 | 600.0 |",
        "| 20 | 0 of 100 | 3.0% | 9.0 | ? | 11.0 | 18.0 | ? |",
    ]
    assert "In plain words: told a limit of 10, this policy exceeds it in at most 4.7% of all its" in text
    assert "results.json, certificate.json and train_info.json" in card(run)
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(read_policy_files(run))))
    values = {entry.task_id: entry for entry in entries}
    assert len(values) == 8
    bound = values[f"{BALL.name}-limit-20-share-over-bound"]
    assert (bound.value, bound.notes) == (
        0.0295,
        "upper bound on the share of episodes over the limit, 95% confidence; 0 of 100 episodes over, "
        "simulator, risk 0.05",
    )


def test_a_certificate_of_other_weights_is_left_out(run, caplog):
    make_certificate(run, weights_sha256="0" * 64)
    assert "## Certificate" not in card(run)
    assert "certificate.json: is of other weights, and is left out" in caplog.text
    assert "certificate.json" not in assemble(read_policy_files(run), "org/x")


def test_a_certificate_without_results_is_published(run):
    shutil.rmtree(run / "evaluation")
    found = make_certificate(run)
    content = assemble(read_policy_files(run), "org/x")
    assert content["certificate.json"] == found.to_json()
    assert f".eval_results/{BALL.name}.yaml" in content
    make_certificate(run, task=None)
    assert not [path for path in assemble(read_policy_files(run), "org/x") if path.startswith(".eval")]


def test_the_risk_is_said_wherever_results_are(run):
    path = run / "evaluation" / "results.json"
    write_results(path, [make_entry([600, 640], [4, 8], risk=risk) for risk in (0.2, 0.05)])
    assert [row[1] for row in rows(card(run))] == [
        "safe extraction, cost fed back, risk 0.05",
        "safe extraction, cost fed back, risk 0.2",
    ]
    data = ModelCard(card(run)).data
    assert {result.metric_args["risk"] for result in data.eval_results} == {0.05, 0.2}
    entries = parse_eval_result_entries(yaml.safe_load(eval_results_yaml(read_policy_files(run))))
    assert all("safe extraction, cost fed back, risk 0.05; " in entry.notes for entry in entries)


def test_data_and_training_are_named(run):
    text = section(card(run), "Training")
    assert f"`{INFO['dataset']['id']}`, SHA-256 of its transitions `{'ab' * 32}`" in text
    assert "spi, 1,000 updates, training seed 0, 2 minutes" in text
    assert '"task": "OfflineBallCircle-v0"' in text
    assert "hf download org/spi-ball train_config.json --local-dir ." in text


def test_a_dataset_of_the_hub_is_linked(run):
    dataset = {"id": "org/set@0123abc (OfflineBallCircle-v0)", "sha256": "ab" * 32, "revision": "v1"}
    write_json(run / "policy" / "train_info.json", INFO | {"dataset": dataset})
    text = card(run, make_entry([1], [1], dataset=dataset))
    assert ModelCard(text).data.datasets == ["org/set"]
    assert "revision `v1`" in section(text, "Training")


def test_a_policy_without_a_record(run):
    for name in ("train_info.json", "train_config.json", "../evaluation/results.json"):
        (run / "policy" / name).unlink()
    text = section(card(run), "Training")
    assert text == "There is no record of how these weights were trained."


def test_the_same_policy_gives_the_same_card(run):
    assert card(run) == card(run)
    assert card(run).endswith("```\n")


def test_the_command(run, capsys, tmp_path):
    assert main(["card", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f'from_pretrained("{run / "policy"}")' in shown
    assert (
        main(["card", str(run), "--repo", "org/spi-ball", "--output", str(tmp_path / "x" / "CARD.md")]) == 0
    )
    assert (tmp_path / "x" / "CARD.md").read_text() == card(run)
    assert main(["card", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_a_licence_of_the_weights_is_told_from_the_codes(run, capsys):
    assert "Weights and code: apache-2.0. The data" in card(run)
    assert main(["card", str(run), "--license", "cc-by-nc-4.0"]) == 0
    text = capsys.readouterr().out
    assert "Weights: cc-by-nc-4.0; code: apache-2.0. The data" in text
    assert ModelCard(text).data.license == "cc-by-nc-4.0"


def test_the_card_of_a_folder_has_no_commands_for_the_hub(run, capsys):
    assert main(["card", str(run)]) == 0
    text = capsys.readouterr().out
    assert "hf download" not in text
    assert "DiffusionPipeline" not in text
    assert f"spi train --config {run / 'policy'}/train_config.json --output-dir NEW_FOLDER" in text
    assert "\n# run\n" in text


def test_rows_of_different_training_seeds_say_which(run):
    write_results(
        run / "evaluation" / "results.json",
        [*ENTRIES, make_entry([620, 660], [5, 7], 10, train_seed=1, train_seconds=130.0)],
    )
    text = card(run)
    assert "| limit kept | episodes within | worst seed's cost | training seeds |" in text
    assert (
        "± is the standard deviation over training seeds, or over episodes where there is one seed." in text
    )
    rows = [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| 10 | safe")]
    assert rows == ["0, 1 |"]


def test_a_folder_that_is_called_like_a_dataset_on_the_hub_is_local(run):
    path = run / "policy" / "train_config.json"
    edit_json(path, dataset="datasets/mine")
    assert "spi train --config train_config.json --dataset FOLDER" in card(run)
    edit_json(run / "policy" / "train_info.json", dataset=INFO["dataset"] | {"id": "datasets/mine@abc (x)"})
    assert "--dataset FOLDER" not in card(run)
