"""`spi space`: try policies and own data in a page in the browser."""

import argparse

from spi_diffusers.files import find_local_policy, local_path

EXAMPLES = """\
examples:
  spi space outputs/ballcircle-seed0
  spi space outputs                                 every policy under a folder, to choose from
  spi space org/spi-ballcircle org/spi-carcircle    from the Hub
  spi publish outputs/ballcircle-seed0 --space org/try-ballcircle    the same page on the Hub, for everybody

The page plays an episode at the limit and the risk that you choose, and shows the video with the running
cost, what the policy weighed at each step, and the episode beside the policy's results at all limits. Your
own data can be dropped there: it is described, a policy is trained briefly, and assessed without a simulator.

It is served until Ctrl-C, to this machine alone unless --host says otherwise. It needs Gradio:
pip install "spi-diffusers[space]". Whoever can reach the page can use this machine's time, and nothing else:
files stay where they are, and policies from the Hub run no code of theirs.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `spi space`."""
    parser.add_argument(
        "policies",
        nargs="+",
        metavar="FOLDER",
        help="folder of a policy, of its run or of several, or an id on the Hub",
    )
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of the page (default: the first free one from 7860)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="whom the page is for: 127.0.0.1 (default) is this machine, 0.0.0.0 everybody in the network",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page."""
    for policy in args.policies:  # before the heavy imports: a typing error shows at once
        if not local_path(policy).is_dir():
            find_local_policy(policy)

    from spi_diffusers.spaces.page import serve

    serve(args.policies, server_name=args.host, server_port=args.port)
    return 0
