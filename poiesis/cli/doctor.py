"""`poiesis doctor`: what does not work at this site, what follows from it, and how to repair it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from typing import Final

from poiesis.cli.text import printable

MAX_WIDTH: Final = 140
NARROW: Final = 100  # where the output is not a terminal


def run(arguments: argparse.Namespace) -> int:
    from poiesis.doctor.plan import checks_for
    from poiesis.doctor.report import as_json, as_text, exit_code
    from poiesis.doctor.run import run_checks
    from poiesis.doctor.site import read_site

    logging.disable(logging.CRITICAL)  # findings say what is wrong
    trial = arguments.role is None if arguments.trial is None else arguments.trial
    accounts = dict(arguments.account)
    site = read_site(
        os.environ, mode=arguments.mode, role=arguments.role, trial=trial, url=arguments.api, accounts=accounts
    )
    results = run_checks(checks_for(site), lambda text: printable(site.clean(text)))
    if arguments.json:
        print(json.dumps(as_json(results, site.mode, site.role), indent=2))
    else:
        is_terminal = sys.stdout.isatty()
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH) if is_terminal else NARROW
        for line in as_text(results, width=width, colours=is_terminal and not os.environ.get("NO_COLOR")):
            print(line)
    return exit_code(results, strict=arguments.strict)
