"""What a child of fuzz.py does: makes inputs from seeds, feeds them, and says what came of it, line by line.

``at SEED`` before each input, ``finding JSON`` where there is one, ``was ANSWER`` after it, ``end`` at the end. A seed
makes an input again: ``fuzz_worker.py KIND SEED SEED+1`` with what fuzz.py writes to its standard input.
"""

from __future__ import annotations

import copy
import faulthandler
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import edgetl
from edgetl.bundle import open_bundle
from edgetl.canonical import canonical_json
from edgetl.errors import EdgetlError
from edgetl.signing import check_signature

MEMORY = 6 << 30
RED = np.full((16, 16, 3), (255, 0, 0), np.uint8)
WHITE = np.full((16, 16, 3), 250, np.uint8)
FAULTS = ("flip", "other", "limit", "removal", "insertion", "repetition", "end")
NUMBERS = tuple(map(bytes.fromhex, ("00000000", "ffffffff", "ffffff7f", "00000080", "01000000", "00100000", "8001")))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Returns bytes with one to four faults; in half of the cases their length stays, so that more is understood."""
    found = bytearray(data)
    faults = ("flip", "other", "limit") if rng.random() < 0.5 else FAULTS
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        size = min(len(found) - at, int(rng.expovariate(1 / 6)) + 1)
        fault = rng.choice(faults)
        if fault == "flip" and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif fault == "other":
            found[at : at + size] = rng.randbytes(size)
        elif fault == "limit":
            number = rng.choice(NUMBERS)
            found[at : at + len(number)] = number if rng.random() < 0.5 else number[::-1]
        elif fault == "removal":
            del found[at : at + size]
        elif fault == "insertion":
            found[at:at] = rng.randbytes(size)
        elif fault == "repetition":
            found[at:at] = found[at : at + 8 * size]
        elif fault == "end":
            del found[at:]
    return bytes(found)


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the digest that belongs to it, as a careful forger would write it."""
    rest = {name: value for name, value in manifest.items() if name != "digest"}
    return {"digest": hashlib.sha256(canonical_json(rest)).hexdigest(), **rest}


class Fuzzer:
    """Makes and feeds inputs.

    Args:
        told: Paths of a sound bundle, its overlay and its key, of a folder to work in, and of one not to be touched.
    """

    def __init__(self, told: dict[str, str]) -> None:
        self.preparing = False  # an input: what is touched then is the fuzzer's own doing
        self.scratch = Path(told["scratch"])
        self.sentinel = Path(told["sentinel"])
        self.files = {path.name: path.read_bytes() for path in Path(told["bundle"]).iterdir()}
        self.manifest = json.loads(self.files["manifest.json"])
        self.overlay = Path(told["overlay"]).read_bytes()
        self.key = Path(told["key"]).read_bytes()
        self.classify = edgetl.load(told["bundle"], threads=1)
        self.pictures = sound_pictures()
        self.hostile = [
            "../sentinel/secret.txt", str(self.sentinel / "secret.txt"), "a/../../sentinel/secret.txt", "/dev/zero",
            "/dev/stdin", ".", "..", "", "a\x00b", "model.fp32.onnx", "labels.txt", "manifest.json", "x" * 300,
            "\ud800", "é\u2028", "tensorrt", "int8", "any", "letterbox", "lanczos", "L", None, True, 0, 1, -1, 64,
            2**31, 2**63, -(2**64), 10**40, 0.0, -0.5, 1e300, [], {}, [[]], [0] * 9, {"a": {}}, [16, 16], [1, 1],
        ]  # fmt: skip

    def written(self, files: dict[str, bytes]) -> Path:
        """Writes a bundle."""
        root = self.scratch / "case.edgetl"
        self.preparing = True
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for name, content in files.items():
            (root / name).write_bytes(content)
        self.preparing = False
        return root

    def manifests(self, rng: random.Random) -> None:
        """A bundle whose manifest alone is another."""
        if rng.random() < 0.2:
            text = damaged(self.files["manifest.json"], rng)
        else:
            manifest = json.loads(self.files["manifest.json"])
            for _ in range(rng.randint(1, 3)):
                self.change(manifest, rng)
            if rng.random() < 0.8 and isinstance(manifest, dict):
                with suppress(ValueError):  # text that no file takes
                    manifest = sealed(manifest)
            text = json.dumps(manifest, indent=rng.choice((None, 2))).encode()
        root = self.written({**self.files, "manifest.json": text})
        bundle = open_bundle(root)
        if any(not (root / name).resolve().is_relative_to(self.scratch) for name in bundle.manifest["files"]):
            raise AssertionError("a name that leads elsewhere was taken")
        bundle.verify()
        self.use(root)

    def change(self, data: Any, rng: random.Random) -> None:
        """Changes one value or field somewhere in a JSON document."""
        places = [
            (holder, key)
            for holder in holders(data)
            for key in (holder.keys() if isinstance(holder, dict) else range(len(holder)))
        ]
        holder, key = rng.choice(places)
        value = copy.deepcopy(rng.choice(self.hostile))  # or one seed would change what the next one gets
        action = rng.randrange(5)
        if action == 0 and len(places) > 1:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[str(value)[:40]] = holder.pop(key)
        elif action == 2 and isinstance(holder, dict):
            holder[str(rng.choice(self.hostile))[:40]] = value
        elif action == 3 and isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])))
        else:
            holder[key] = value

    def bundles(self, rng: random.Random) -> None:
        """A bundle of which another file is another."""
        files, overlay, keys = dict(self.files), None, None
        target = rng.choice(("graph", "graph", "exemplars", "overlay", "signature", "file", "kind"))
        graphs = [name for name in files if name.endswith(".onnx")]
        if target == "graph":
            graph = damaged(files[graphs[0]], rng)
            files |= dict.fromkeys(graphs, graph)
        elif target == "exemplars":
            header = files["exemplars.npy"][:128]
            whole = rng.random() < 0.5
            data = files["exemplars.npy"] if whole else header
            files["exemplars.npy"] = damaged(data, rng) + (b"" if whole else files["exemplars.npy"][128:])
        elif target == "overlay":
            overlay = self.scratch / "overlay.json"
            if rng.random() < 0.5:
                overlay.write_bytes(damaged(self.overlay, rng))
            else:
                found = json.loads(self.overlay)
                self.change(found, rng)
                overlay.write_text(json.dumps(found))
        elif target == "signature":
            keys = [self.key]
            files["manifest.sig"] = damaged(files["manifest.sig"], rng)
        elif target == "file":
            name = rng.choice(sorted(files))
            files[name] = damaged(files[name], rng)
        if target in ("graph", "exemplars") and rng.random() < 0.8:
            files["manifest.json"] = self.resealed(files)
        root = self.written(files)
        if target == "kind":
            self.replace(root / rng.choice(sorted(files)), rng)
            keys = [self.key]
        if keys is not None:
            check_signature(open_bundle(root), keys)
        self.use(root, overlay, keys)

    def resealed(self, files: dict[str, bytes]) -> bytes:
        """Returns a manifest that says what these files are."""
        manifest = json.loads(self.files["manifest.json"])
        hashes = {name: hashlib.sha256(files[name]).hexdigest() for name in manifest["files"]}
        manifest["files"] = hashes
        for variant in manifest["variants"]:
            variant |= {"sha256": hashes[variant["file"]], "bytes": len(files[variant["file"]])}
        return json.dumps(sealed(manifest)).encode()

    def replace(self, path: Path, rng: random.Random) -> None:
        """Puts something else in a file's place."""
        self.preparing = True
        path.unlink()
        kind = rng.randrange(5)
        if kind == 0:
            path.symlink_to(rng.choice((self.sentinel / "secret.txt", Path("/dev/zero"), path)))
        elif kind == 1:
            os.mkfifo(path)
        elif kind == 2:
            path.mkdir()
        elif kind == 3:
            path.write_bytes(rng.randbytes(rng.choice((0, 1, 100, 100_000))))
        self.preparing = False

    def use(self, root: Path, overlay: Path | None = None, keys: list[bytes] | None = None) -> None:
        """Does with a bundle what a device app would."""
        with edgetl.load(root, threads=1, overlay=overlay or False, trusted_keys=keys and tuple(keys)) as classify:
            classify.batch([RED, WHITE])
            if overlay is None:
                classify.learn("white", [WHITE])
                classify(WHITE)

    def pictures_(self, rng: random.Random) -> None:
        """A damaged picture, or bytes of chance."""
        if rng.random() < 0.1:
            data = rng.choice((b"", *(p[:12] for p in self.pictures))) + rng.randbytes(int(rng.expovariate(1 / 200)))
        else:
            data = damaged(rng.choice(self.pictures), rng)
        if rng.random() < 0.9:
            self.classify(data)
            return
        path = self.scratch / f"picture{rng.choice(('.jpg', '.png', '.tif', '.webp', '.eps', ''))}"
        path.write_bytes(data)
        self.classify(path)


def holders(data: Any) -> list[Any]:
    """Returns every object and list in a JSON document that is not empty."""
    if not isinstance(data, dict | list) or not data:
        return []
    return [data, *(h for value in (data.values() if isinstance(data, dict) else data) for h in holders(value))]


def sound_pictures() -> list[bytes]:
    """Returns pictures of all formats and modes, some 1 kB each."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (noise, "JPEG", {"exif": exif}),
        (noise, "JPEG", {"progressive": True, "quality": 30}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise, "PNG", {}),
        (noise.convert("P"), "PNG", {"transparency": 3}),
        (noise.convert("LA"), "PNG", {}),
        (Image.fromarray(rng.integers(0, 65536, (20, 24), np.uint16)), "PNG", {}),
        (noise, "BMP", {}),
        (noise.convert("1"), "BMP", {}),
        (noise, "WEBP", {"lossless": True}),
        (noise, "WEBP", {"quality": 20, "exif": exif}),
        *((noise, "TIFF", {"compression": how}) for how in (None, "tiff_lzw", "packbits", "jpeg", "tiff_deflate")),
        (noise.convert("F"), "TIFF", {}),
        (noise, "GIF", {"save_all": True, "append_images": [noise.rotate(90)]}),
        (noise, "PPM", {}),
    ]
    found = []
    for image, kind, options in forms:
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append(file.getvalue())
    return found


def watch(scratch: Path, sentinel: Path, tell: Callable[[str], None]) -> None:
    """Tells of every file that Python opens in the sentinel's folder, or for writing outside the child's own."""
    own = (str(scratch), "/dev/null")
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    changes = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in changes:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        real = os.fsdecode(path)
        folder = os.path.realpath(os.path.dirname(real) or ".")  # noqa: PTH120  (pathlib opens files too)
        real = os.path.join(folder, os.path.basename(real))  # noqa: PTH118, PTH119
        flags = arguments[2] if event == "open" and isinstance(arguments[2], int) else 0
        if real.startswith(str(sentinel)) or ((flags & writing or event in changes) and not real.startswith(own)):
            tell(f"{event} {real}")

    sys.addaudithook(hook)


def main() -> None:
    """Feeds the inputs of some seeds."""
    faulthandler.enable()
    kind, start, stop = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    told = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fuzzer = Fuzzer(told)
    feed = {"manifests": fuzzer.manifests, "bundles": fuzzer.bundles, "pictures": fuzzer.pictures_}[kind]
    seed = start

    def tell(sort: str, **facts: Any) -> None:
        print("finding " + json.dumps({"seed": seed, "sort": sort, **facts}), flush=True)

    def touched(what: str) -> None:
        if not fuzzer.preparing:
            tell("touched", path=what)

    watch(Path(told["scratch"]), Path(told["sentinel"]), touched)
    for seed in range(start, stop):
        print(f"at {seed}", flush=True)
        try:
            feed(random.Random(f"{kind} {seed}"))
            answer = "taken"
        except EdgetlError as error:
            answer = type(error).__name__
            if "\n" in str(error):
                tell("exception", said=f"of several lines: {error}"[:500])
        except Exception:
            answer = "other"
            tell("exception", said=traceback.format_exc()[-1500:])
        print(f"was {answer}", flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    main()
