"""How does a test say which errno it expects?"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fails_with(*expected: int) -> Iterator[None]:
    """Expect the block to raise OSError with one of the errno values `expected`.

    Raises AssertionError when the block succeeds or fails with another errno, naming both.
    """
    wanted = " or ".join(errno.errorcode[number] for number in expected)
    try:
        yield
    except OSError as error:
        if error.errno not in expected:
            got = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise AssertionError(f"expected {wanted}, got {got}: {error}") from error
    else:
        raise AssertionError(f"expected {wanted}, but the call succeeded")
