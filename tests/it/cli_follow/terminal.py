"""Runs a command in a terminal of 80 by 24, waits for some texts, ends it in some way, and tells how it left the terminal.

    terminal.py q|ctrl-c|TERM TEXT,TEXT... COMMAND...
"""
import fcntl, json, os, pty, select, signal, struct, sys, termios, time

way, texts, command = sys.argv[1], sys.argv[2].split(","), sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm-256color"
    # The child waits until its terminal has a size.
    sys.stdin.readline()
    os.execvp(command[0], command)
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
before = termios.tcgetattr(terminal)
os.write(terminal, b"\n")

written, ended, asked = b"", None, False
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    if select.select([terminal], [], [], 0.05)[0]:
        try:
            written += os.read(terminal, 65536)
        except OSError:  # It has ended, and nobody holds the terminal any more.
            pass
    if not asked and all(text.encode() in written for text in texts):
        asked = True
        raw = termios.tcgetattr(terminal) != before
        if way == "TERM":
            os.kill(pid, signal.SIGTERM)
        else:
            os.write(terminal, b"q" if way == "q" else b"\x03")
    if ended is None:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended = os.waitstatus_to_exitcode(status)
            after = termios.tcgetattr(terminal)
            continue
    else:
        break
else:
    sys.exit(f"it never ended, or never showed {texts}: {written[-3000:]!r}")
print(json.dumps({
    "code": ended,
    "asked": asked,
    "taken": asked and raw,
    "restored": after == before,
    "entered": written.count(b"\x1b[?1049h"),
    "left": written.count(b"\x1b[?1049l"),
    "cursor_shown": written.rfind(b"\x1b[?25h") > written.rfind(b"\x1b[?25l"),
}))
