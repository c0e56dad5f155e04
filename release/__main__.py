"""`python -m release COMMAND`."""

import sys

from release.commands import main

sys.exit(main())
