"""What tests of all commands share."""

from spi_diffusers.cli import main

#: Options of a training that takes a second.
TINY = (
    *("--network.hidden_dims", "32", "32", "--batch_size", "32", "--threads", "1", "--device", "cpu"),
    *("--updates", "5", "--quiet"),
)


def fails(capsys, *arguments):
    """Run a command that must fail with exit code 2 and one line; return the line."""
    try:
        code = main(list(arguments))
    except SystemExit as error:
        code = error.code
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]
