"""`python -m devstack.image OUTDIR`: builds the guest and prints where its two files are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from devstack.image.build import ImageError, build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m devstack.image", description=__doc__)
    parser.add_argument("outdir", type=Path, help="where vmlinuz and initrd.img are put")
    parser.add_argument("--cache", type=Path, help="where downloaded packages are kept")
    args = parser.parse_args()
    try:
        image = build(args.outdir, cache=args.cache, tell=lambda line: print(line, file=sys.stderr))
    except ImageError as exc:
        print(f"devstack.image: {exc}", file=sys.stderr)
        return 1
    print(image.kernel)
    print(image.initrd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
