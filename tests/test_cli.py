"""The command line's manners: help, settings by file and by name, JSON, quiet, completion, what import prints."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from mgkeras.cli.command import GROUPS
from mgkeras.cli.main import cli
from mgkeras.cli.setting_options import SETTINGS, start_of
from mgkeras.cli.terminal import Terminal
from test_docs import command_of, every_command

from mgkeras.settings import PRESETS, as_dict, flatten, for_model, preset, typed


def run(*words, **options):
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="mgkeras", **options)


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_h_is_help_whoever_asks_first(words):
    """click keeps a command's help option from its first call."""
    command = command_of(words)
    command._help_option = None
    command.make_context(words[-1], [], resilient_parsing=True)  # without the group, which once gave it its names
    command.get_help_option(click.Context(command))
    short, long = run(*words, "-h"), run(*words, "--help")
    assert short.exit_code == 0 and short.output == long.output and "-h, --help" in short.output


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_every_text_is_a_sentence(words):
    for option in command_of(words).params:
        if isinstance(option, click.Option):
            text = re.sub(r"\s+\[[^\]]*\]$", "", option.help or "")
            assert re.match(r"[A-Z]\w+ .*[.]$", text, re.S) and len(text.split()) > 2, (option.opts, text)


def test_an_options_start_is_shown_as_numbers():
    epochs = ", ".join(f"{start} {preset(start).training.epochs}" for start in PRESETS)
    assert start_of("training.epochs") == f"[{epochs}]" and "paper 250" in epochs and "demo 60" in epochs
    assert start_of("guidance.ce") == "[default: mean]"
    assert start_of("guidance.lambda_dice").endswith("; guided-context 0.3]")
    text = run("fit", "-h", terminal_width=110).output
    assert "the preset's" not in text and f"[{epochs}]" in " ".join(text.split())
    titles = [title for title in re.findall(r"^(\w[\w ]+):$", text, re.M) if title != "Options"]
    assert titles == [*GROUPS, "Every command"]
    for _, name, kind, _ in SETTINGS:  # each option takes what the presets have
        for start in PRESETS:
            value = flatten(as_dict(preset(start)))[name]
            kind.convert(tuple(value) if isinstance(value, list) else value, None, None)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("backbone.filters", "8,16,32", (8, 16, 32)),
        ("backbone.last_pool", "true", True),
        ("training.stratify", "", ()),
        ("training.stratify", "er, pr", ("er", "pr")),
        ("guidance.sigmoid_offset", "-3", -3.0),
        ("training.leave_out", "site", "site"),
    ],
)
def test_a_setting_is_read_as_its_kind(name, text, value):
    found = typed(name, text)
    assert found == value and type(found) is type(value)
    assert typed(name, found) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training.epochs", "ten"),
        ("training.epochs", "1.5"),
        ("training.learning_rate", "nan"),
        ("backbone.filters", "8,0"),
        ("backbone.filters", ""),
        ("mask.noise_floor", "1.1"),
        ("backbone.last_pool", "perhaps"),
        ("volume.side", [48, 48]),
        ("volume.depth", "3"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(name, text):
    with pytest.raises(ValueError, match=r"expected .*Received: "):
        typed(name, text)


@pytest.fixture
def asked(monkeypatch):
    """What fit would train: the settings that reach it; no exam is read."""
    from mgkeras.cli import fit

    found = []
    monkeypatch.setattr(fit, "fit_runs", lambda cohort, runs, *more: found.extend(settings for settings, _ in runs))
    return found


def fit_words(phantom, *more):
    return ("fit", phantom, "--outcome", "recurrence", "--preset", "demo", *more)


def test_any_number_is_set_by_name_and_by_file_and_options_stand_above_the_file(phantom, asked, tmp_path):
    config = tmp_path / "settings.toml"
    config.write_text(
        'preset = "demo"\nmodel = "no-mask"\nseed = 3\n[training]\nepochs = 7\nfolds = 2\n[guidance]\ndilation_mm = 9\n'
    )
    words = ("fit", phantom, "--outcome", "recurrence", "--config", config)
    more = ("--epochs", "9", "--set", "backbone.filters=8,16,32", "--set", "backbone.convolutions=1,1,1")
    assert run(*words).exit_code == run(*words, *more).exit_code == 0
    assert run(*words, "--model", "guided").exit_code == 0
    first, second, third = asked
    assert (first.preset, first.model, first.seed, first.training.epochs) == ("demo", "no-mask", 3, 7)
    assert second.training.epochs == 9 and second.backbone.filters == (8, 16, 32) and second.training.folds == 2
    assert first.guidance.dilation_mm == preset("demo").guidance.dilation_mm and third.guidance.dilation_mm == 9


def test_a_runs_settings_are_a_config(phantom, asked, tmp_path):
    wanted = for_model(preset("demo"), "guided-context")
    (tmp_path / "settings.json").write_text(json.dumps(as_dict(wanted) | {"outcome": "her2"}))
    found = run("fit", phantom, "--config", tmp_path / "settings.json", "--outcome", "recurrence")
    assert found.exit_code == 0, found.output
    assert flatten(as_dict(asked[0])) == flatten(as_dict(wanted)) | {"outcome": "recurrence"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--set", "training.epochs=0"), "training.epochs: 0 is not in the range"),
        (("--set", "training.epochs"), "expected NAME=VALUE. Received: training.epochs"),
        (("--set", "backbone.filters=8,16"), "must have a number for each block"),
        (("--set", "depth=3"), "Received: depth"),
        (("--model", "no-mask", "--set", "guidance.ce=sum"), "no-mask has no guidance"),
        (("--config", "bad.toml"), "expected TOML"),
        (("--config", "other.toml"), "Received: colour"),
    ],
)
def test_what_cannot_be_set_is_told(phantom, asked, tmp_path, monkeypatch, more, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("epochs = ")
    (tmp_path / "other.toml").write_text("colour = 1")
    found = run(*fit_words(phantom, *more))
    assert found.exit_code and told in found.output + str(found.exception) and not asked


def test_cohort_as_an_option_is_the_argument(phantom, asked):
    for words in (("--cohort", phantom), (f"--cohort={phantom}",), (phantom,)):
        found = run("fit", "--outcome", "recurrence", "--preset", "demo", *words)
        assert found.exit_code == 0, found.output
    assert len(asked) == 3 and asked[0] == asked[1] == asked[2]
    twice = run("fit", phantom, "--cohort", phantom)
    assert twice.exit_code == 2 and "unexpected extra argument" in twice.output


def test_json_is_all_of_stdout_and_q_leaves_warnings(tmp_path):
    made = run("phantom", tmp_path / "made", "--subjects", "2", "--side", "16", "--json")
    assert json.loads(made.stdout) == {"cohort": str(tmp_path / "made" / "cohort.csv"), "subjects": 2}
    assert "patients 2/2" in made.stderr and "Next: " in made.stderr
    quiet = run("phantom", tmp_path / "more", "--subjects", "2", "--side", "16", "--json", "-q")
    assert json.loads(quiet.stdout) and not quiet.stderr
    checked = run("cohort", "check", tmp_path / "made" / "cohort.csv", "--json", "-q", "--no-sheet", "--jobs", "1")
    found = json.loads(checked.stdout)
    assert found["subjects"] == 2 and found["errors"] == 0 == checked.exit_code
    (tmp_path / "bad.csv").write_text("subject,early,outcome\nA,nowhere.nii.gz,1\n")
    bad = run("cohort", "check", tmp_path / "bad.csv", "--json")
    assert bad.exit_code == 1 and json.loads(bad.stdout)["errors"] > 0 and json.loads(bad.stdout)["problems"]


def test_a_part_of_a_run_has_an_answer_too(phantom, asked, tmp_path):
    found = run(*fit_words(phantom, "--fold", "1", "--out", tmp_path / "r", "--json", "-q"))
    assert json.loads(found.stdout) == {"run": str(tmp_path / "r"), "summary": None} and not found.stderr


def test_warnings_are_said_with_q(capsys):
    with click.Context(cli) as context:
        context.meta["mgkeras.quiet"] = context
        terminal = Terminal()
        terminal.line("fold 1")
        terminal.tick("epoch 1")
        terminal.counter("volumes")(1, 1)
        terminal.line("warning: a mask is empty")
    assert capsys.readouterr().err == "warning: a mask is empty\n"


def test_v_adds_the_traceback_of_an_error(tmp_path):
    code = "import sys; from mgkeras.cli.main import main; sys.argv[0] = 'mgkeras'; main()"
    words = [sys.executable, "-c", code, "compare", str(tmp_path)]
    plain, loud = (subprocess.run([*words, *more], capture_output=True, text=True) for more in ((), ("-v",)))
    assert plain.returncode == loud.returncode == 1
    assert "Traceback" not in plain.stderr and "Traceback" in loud.stderr
    assert loud.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]


def test_the_shell_completes_commands_and_options():
    code = "from mgkeras.cli.main import cli; cli(prog_name='mgkeras')"

    def completed(line):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_MGKERAS_COMPLETE": "bash_complete"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | words)
        return [word.split(",")[1] for word in done.stdout.splitlines()]

    assert completed("mgkeras eva") == ["evaluate"]
    assert {"--learning-rate", "--leave-out"} <= set(completed("mgkeras fit --lea"))
    assert "_MGKERAS_COMPLETE" in run("-h").output


def test_python_m_is_the_command_and_importing_prints_nothing():
    done = subprocess.run([sys.executable, "-m", "mgkeras", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and "version" in done.stdout
    done = subprocess.run([sys.executable, "-c", "import mgkeras"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Screen(io.StringIO):
    """A terminal as Terminal and rich see it."""

    def isatty(self):
        return True


def test_a_terminal_has_a_bar_within_an_epoch_and_a_log_has_a_line_an_epoch(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = {}
    for stream in (Screen(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        terminal = Terminal()
        for epoch in range(1, 3):
            for done in range(1, 31):
                terminal.steps(done, 30)
            terminal.tick(f"  fold 1/3  epoch {epoch}/2  [CE] 0.5")
        terminal.line("held out: AUC \x1b[31m")
        shown[type(stream)] = stream.getvalue()
    assert shown[io.StringIO].splitlines() == [
        "  fold 1/3  epoch 1/2  [CE] 0.5",
        "  fold 1/3  epoch 2/2  [CE] 0.5",
        r"held out: AUC \x1b[31m",
    ]
    screen = shown[Screen]
    assert "30/30" in screen and "epoch 2/2  [CE] 0.5" in screen and screen.count("held out") == 1
    assert screen.rstrip().endswith(r"held out: AUC \x1b[31m") and "\x1b[?25h" in screen  # the cursor is back


def test_a_counter_ends_its_bar_and_fills_no_log(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Screen())
    terminal = Terminal()
    for done in range(1, 101):
        terminal.counter("volumes")(done, 100)
    assert terminal.bar is None and "100/100" in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    terminal = Terminal()
    for done in range(1, 101):
        terminal.counter("volumes")(done, 100)
    assert len(sys.stderr.getvalue().splitlines()) == 10


def test_another_command_is_told_the_commands_and_the_nearest():
    for words, near in ((("ft",), "fit"), (("import", "foldr"), "folder"), (("xyz",), None)):
        found = run(*words)
        assert (
            found.exit_code == 2 and f"Received: {words[-1]}" in found.output and "expected one of the" in found.output
        )
        assert ("Did you mean" in found.output) == bool(near) and (near is None or f"mean {near}?" in found.output)


def test_only_fit_writes_into_a_run(tmp_path):
    (tmp_path / "cohort.csv").write_text("subject,early\nA,a.nii.gz\n")
    for name in ("settings.json", "folds.json"):
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.iterdir())
    for words in (
        ("predict", tmp_path, tmp_path / "cohort.csv", "--out", tmp_path),
        ("mask", tmp_path / "cohort.csv", "--out", tmp_path),
        ("evaluate", tmp_path, "--out", tmp_path),
        ("phantom", tmp_path),
    ):
        found = run(*words)
        assert found.exit_code == 2 and "expected a folder that holds no run" in found.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_step_of_another_command_says_no_next_and_nothing_twice(capsys):
    with click.Context(cli) as context:
        context.meta["mgkeras.step"] = set()
        for _ in range(2):
            terminal = Terminal()
            terminal.line("device: CPU")
            terminal.next("mgkeras report RUN")
    Terminal().next("mgkeras report RUN")
    assert capsys.readouterr().err == "device: CPU\nNext: mgkeras report RUN\n"
