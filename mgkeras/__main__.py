"""python -m mgkeras: the command line where its script is not on the path."""

from mgkeras.cli.main import main

if __name__ == "__main__":
    main()
