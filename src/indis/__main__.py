"""``python -m indis``."""

from indis.cli.main import main

if __name__ == "__main__":
    main()
