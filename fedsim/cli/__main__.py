"""`python -m fedsim.cli`."""

from fedsim.cli.main import main

if __name__ == "__main__":
    main(prog_name="fedsim")
