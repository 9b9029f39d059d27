"""``python -m lipcert`` is the ``lipcert`` script, also under ``torchrun -m lipcert``. Floor 5."""

from lipcert.cli import main

if __name__ == "__main__":
    main()
