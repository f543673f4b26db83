"""python -m jaxcodec.cli."""

import sys

from jaxcodec.cli import main

sys.exit(main())
