"""``python -m clipfast.doctor``: see ``clipfast.doctor``."""

import sys


def main() -> None:
    """Examine, print, and end with 0, or with 1 where there was a failure.

    What cannot even be imported is a finding too.
    """
    try:
        from clipfast.doctor.run import run
    except ImportError as error:
        package = f"the package {error.name} is" if error.name else "something is"
        print(
            f"FAILURE  installed   {package} missing or unfit: {error}\n"
            f"         -> do       Install what training needs, pip install 'clipfast[train]', or "
            "build anew, pip install -e . --no-build-isolation; python -m clipfast.env says what "
            "is here"
        )
        raise SystemExit(1) from None
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
