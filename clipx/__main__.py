"""``python -m clipx`` is ``clipx``."""

from clipx.cli import main

if __name__ == "__main__":
    main()
