"""Which exceptions are a user's mistake: those of eenet, of a full machine, and what Lightning and torch refuse."""

import errno
import linecache
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import yaml

from eenet.errors import UserError, command
from eenet.parsing.given import Given, find_given, leaves
from eenet.parsing.shipped import with_paths

REFUSING = ("lightning.", "torch.optim", "torch.utils.data")
"""Modules whose own `raise` speaks of what they were given."""

LONGEST = 300
"""Characters of another library's message that are shown."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
UNFIT = (
    *(errno.EEXIST, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.ENOTEMPTY, errno.ESTALE),
)

DEVICES = ("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision")
"""Settings that Lightning refuses without naming them."""


def users_mistake(error: BaseException, args: Sequence[str]) -> UserError | None:
    """The user's mistake that caused an exception, if one did; jsonargparse wraps what a constructor raises."""
    causes = list(causes_of(error))
    own = next((cause for cause in causes if isinstance(cause, UserError)), None)
    if own is not None:
        return own
    args = with_paths(list(args))
    return next(filter(None, (translate(cause, args) for cause in causes)), None)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    while error is not None:
        yield error
        error = error.__cause__


def translate(error: BaseException, args: Sequence[str]) -> UserError | None:
    """What another library's exception says of the user's arguments or machine, `None` where it may be a bug."""
    said = " ".join(str(error).split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
    given = isinstance(error, OSError) and any(str(error.filename) in text for text in args)
    if isinstance(error, OSError) and (error.errno in (*FULL, *FORBIDDEN, *UNFIT) or given):
        remedy = "free some space, or" if error.errno in FULL else "change its rights, or"
        remedy = remedy if error.errno in (*FULL, *FORBIDDEN) else "give one that can be used, or"
        name = error.filename2 or error.filename or "the output"
        return UserError("file", name, f"{error.strerror}; {remedy} choose another place")
    if isinstance(error, UnicodeEncodeError) and error.encoding.replace("_", "-") == sys.getfilesystemencoding():
        problem = f"cannot be a file's name in this locale, whose encoding is {error.encoding}; set PYTHONUTF8=1"
        return UserError("file", error.object, problem)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said:
        remedy = "lower it, or raise trainer.accumulate_grad_batches in its place"
        return about("data.init_args.batch_size", args, f"this machine's memory is too small ({said}); {remedy}")
    if type(error) is RuntimeError and "gloo" in said and "peer" in said:
        return about("trainer.devices", args, "another process of this training ended; its own output says why")
    if said.startswith("Error(s) in loading state_dict"):
        return about("ckpt_path", args, f"is of another model than the configuration's: {said.partition(': ')[2]}")
    if restores(error):
        remedy = "it is damaged, or of another version or configuration"
        return about("ckpt_path", args, f"cannot be taken up ({type(error).__name__}: {said}); {remedy}")
    if refuses(error):
        key = setting(said, args)
        machine = f"; {command('doctor')} says what this machine has" if key in DEVICES else ""
        return about(key, args, said + machine)
    return None


def about(key: str, args: Sequence[str], problem: str) -> UserError:
    """A mistake in a key, with the value that the arguments give it and its place."""
    found = find_given(args, key) or Given(None)
    return UserError(key, found.value, problem + found.place)


def restores(error: BaseException) -> bool:
    """Whether an exception came while Lightning took up a checkpoint."""
    trace, found = error.__traceback__, False
    while trace is not None and not found:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
        found = module.endswith(".checkpoint_connector") and "restore" in code.co_name
        trace = trace.tb_next
    return found


def refuses(error: BaseException) -> bool:
    """Whether a library raised an exception by a `raise` of its own and not by a fault on its way."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
    return trace.tb_frame.f_globals.get("__name__", "").startswith(REFUSING) and line.strip().startswith("raise")


def setting(said: str, args: Sequence[str]) -> str:
    """The setting that a message speaks of: one that was given, and whose name or else value it holds.

    Values in a configuration are many: of these, one that is quoted or ends the message.
    """
    words = re.findall(r"-?\w+(?:\.\w+)*", said)
    options = [text.lstrip("-").partition("=")[0] for text in args if text.startswith("--")]
    named = (f"trainer.{word}" for word in words if find_given(args, f"trainer.{word}"))
    meant = (key for key in (*DEVICES, *options) if (found := find_given(args, key)) and str(found.value) in words)
    quoted = re.findall(r"[`'\"]([^`'\"\s]+)[`'\"]|: (-?\d\S*)$", said)
    values = [yaml.safe_load(text or number) for text, number in quoted]
    inside = (key for value in values for key, given in leaves(args) if type(given) is not bool and given == value)
    return next(chain(named, meant, inside), "config")
