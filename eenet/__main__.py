"""`python -m eenet`."""

from eenet.cli.main import main

if __name__ == "__main__":
    main()
