"""`python -m lwm_cli` is `lwm`."""

from __future__ import annotations

import sys

from lwm_cli.app import main

sys.exit(main())
