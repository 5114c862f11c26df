"""The studio of Guidon on a Space of Hugging Face, with a CPU and the model in the package."""

import os
import threading

# what one comparison may be: nine clips of 50 steps
os.environ.setdefault("GUIDON_STUDIO_MAX_WORK", "30000000")

from guidon.studio.engine import Studio
from guidon.studio.server import PORT, start

# the name that browsers call the Space by; without it, this machine alone
HOST = os.environ.get("SPACE_HOST")


def main() -> None:
    """Serve until the Space is stopped."""
    studio = Studio(device="cpu", waiting=8)
    port = int(os.environ.get("PORT", PORT))
    if HOST:
        running = start(studio, address="0.0.0.0", port=port, hosts=(HOST,), public=True)
    else:
        running = start(studio, port=port)
    print(f"the studio is at {running.url}", flush=True)
    studio.warm()
    try:
        threading.Event().wait()
    finally:
        running.close()
        studio.close()


if __name__ == "__main__":
    main()
