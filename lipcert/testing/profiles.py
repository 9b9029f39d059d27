"""Settings of hypothesis for three occasions. Floor 6."""

from hypothesis import settings

# Not what is loaded at the moment: a profile means the same wherever it is registered.
_BASE = settings(settings.get_profile("default"), deadline=None, print_blob=True)

PROFILES: dict[str, settings] = {
    "lipcert-dev": settings(_BASE, max_examples=25),
    "lipcert-ci": settings(_BASE, max_examples=200, derandomize=True),
    "lipcert-nightly": settings(_BASE, max_examples=20000),
}
"""While writing code, for every change, and for the night. No deadline: the first call of a network is slow."""


def register_profiles() -> None:
    """Make the profiles known to hypothesis; `hypothesis.settings.load_profile` picks one.

    Example:
        >>> from hypothesis import settings
        >>> register_profiles()
        >>> settings.get_profile("lipcert-dev").max_examples
        25
    """
    for name, profile in PROFILES.items():
        settings.register_profile(name, profile)
