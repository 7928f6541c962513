"""Small copies of pictures for pages, the only pictures that the server hands out by itself; each by a name that tells
nothing."""

import hashlib
import re
from pathlib import Path

from PIL import Image

from studio.home import Home, write_atomic

SIDE = 512
ROUTE = "/studio/thumbs/"
_NAME = re.compile(r"[0-9a-f]{32}\.webp")


class Thumbs:
    """Those of a home, made when they are first asked for."""

    def __init__(self, home: Home) -> None:
        self.folder = home.cache / "thumbs"

    def url(self, picture: Path, side: int = SIDE) -> str:
        """Where the small copy of `picture` is to be had; empty where there is no such picture."""
        try:
            about = picture.stat()
            key = f"{picture}\0{about.st_mtime_ns}\0{about.st_size}\0{side}"
            name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.webp"
            if not (self.folder / name).is_file():
                self._make(picture, self.folder / name, side)
        except OSError:
            return ""
        return ROUTE + name

    def file(self, name: str) -> Path | None:
        """The small copy called `name`, if there is one."""
        path = self.folder / name
        return path if _NAME.fullmatch(name) and path.is_file() and not path.is_symlink() else None

    def _make(self, picture: Path, to: Path, side: int) -> None:
        with Image.open(picture) as opened:
            small = opened.convert("RGB")
        if max(small.size) > side:
            small.thumbnail((side, side))
        write_atomic(to, lambda file: small.save(file, "WEBP", lossless=max(small.size) <= 160, quality=88))
