"""A bundle scores as the system that it was made of, is the same bytes every time, and nothing else passes for one."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from normscape.errors import UserError
from normscape.stages.system import ScoredSystem
from normscape.stages.system_files import EXTRAS, PARTS
from normscape.tracking import unpacking
from normscape.tracking.bundle import IMPORTED_TAG, export_model, export_run, import_bundle
from normscape.tracking.registry import SYSTEM_TAG, fetch_model, register_run
from normscape.tracking.store import open_client
from normscape.tracking.unpacking import BundleError, unpacked

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def runs(system_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that may be registered."""
    folder = tmp_path_factory.mktemp("export") / "runs"
    shutil.copytree(system_run, folder / "toy")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests: its migrations take seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('elsewhere') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def bundle(system_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the run."""
    return export_run(system_run, tmp_path_factory.mktemp("bundles") / "toy.zip").path


def read(path: Path) -> Files:
    """All files of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def summed(files: Files, **header: Any) -> Files:
    """The files with a list of checksums that fits them."""
    listed = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
        if name != "checksums.json"
    }
    told = {"format": "normscape-bundle", "version": 1, "files": listed} | header
    return files | {"checksums.json": json.dumps(told).encode()}


def packed(path: Path, files: Files, *, compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive of these files."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def images(system: ScoredSystem) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Noise, and angles."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (5, *system.image_shape), dtype=np.uint8), {"angle": np.linspace(0, 80, 5)}


# ---- whole ones


def test_the_same_system_gives_the_same_bytes(system_run: Path, bundle: Path, tmp_path: Path) -> None:
    """Twice the same run; every file is in the list with its SHA-256; nothing in the archive tells when or where."""
    again = export_run(system_run, tmp_path / "new folder" / "again.zip")
    assert again.path.read_bytes() == bundle.read_bytes()
    assert again.sha256 == hashlib.sha256(bundle.read_bytes()).hexdigest()
    files = read(bundle)
    assert files == summed(files) | {"checksums.json": files["checksums.json"]}
    listed = json.loads(files["checksums.json"])["files"]
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in listed} == {n: e["sha256"] for n, e in listed.items()}
    assert set(listed) == set(files) - {"checksums.json"}
    with zipfile.ZipFile(bundle) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert [entry.filename for entry in archive.infolist()] == sorted(files)
    assert {"bundle.json", "model_card.md", "test_scores.parquet", "system/config.yaml", "system/score/forest.skops"} <= set(
        files
    )
    assert not [name for name in files if name.endswith((".pkl", ".pth", ".pt"))]


@pytest.mark.slow
def test_there_and_back_it_scores_the_same(system_run: Path, bundle: Path, store: str, tmp_path: Path) -> None:
    """Exported from a run, imported elsewhere, exported from there: same scores, same bytes."""
    done = import_bundle(bundle, store)
    assert (done.model, done.version, done.created) == ("normscape-toy", 1, True)
    before = ScoredSystem.from_run(system_run)
    after = ScoredSystem.from_package(fetch_model("models:/normscape-toy@challenger", store).system)
    assert before.score(*images(before)).equals(after.score(*images(before)))
    assert after.threshold == before.threshold

    client = open_client(store)
    version = client.get_model_version("normscape-toy", "1")
    assert version.description == read(bundle)["model_card.md"].decode()
    assert version.tags[IMPORTED_TAG] == "not recorded"
    assert float(version.tags["normscape.forest_test_auroc"]) >= 0
    assert client.get_run(done.run_id).info.status == "FINISHED"
    again = import_bundle(bundle, store)
    assert (again.version, again.created) == (1, False)
    assert export_model("models:/normscape-toy/1", store, tmp_path / "back.zip").path.read_bytes() == bundle.read_bytes()

    served = mlflow.pyfunc.load_model(client.get_model_version_download_uri("normscape-toy", "1"))
    outputs = [column.name for column in served.metadata.signature.outputs.inputs]
    pictures, conditions = images(before)
    answer = served.predict({"image": pictures, "angle_degrees": conditions["angle"][:, None]})
    assert set(outputs) <= set(answer.columns)
    assert np.array_equal(answer["anomaly_score"], before.score(pictures, conditions)["anomaly_score"].to_numpy())


@pytest.mark.slow
def test_a_registered_model_and_its_run_give_the_same_bundle(
    runs: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    done = register_run(runs / "toy", model="own")
    first = export_run(runs / "toy", tmp_path / "run.zip", model="own")
    second = export_model("models:/own@challenger", store, tmp_path / "model.zip")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert json.loads(read(first.path)["bundle.json"])["run_id"] == done.run_id
    with pytest.raises(UserError, match="nothing"):
        export_model("models:/nothing@champion", store, tmp_path / "none.zip")
    with pytest.raises(UserError, match="expected models:/NAME@ALIAS"):
        export_model("models:/normscape-toy", store, tmp_path / "none.zip")
    assert not (tmp_path / "none.zip").exists()


def test_a_packed_bundle_is_a_bundle(bundle: Path, tmp_path: Path) -> None:
    """Somebody unpacked it and packed it again, smaller."""
    with unpacked(packed(tmp_path / "small.zip", read(bundle), compression=zipfile.ZIP_DEFLATED)) as found:
        assert found.config.name == "toy"
        assert found.about.tags[SYSTEM_TAG]
        assert (found.folder / "system" / "gan" / "generator.safetensors").is_file()
    assert not found.folder.exists()


def test_a_bundle_has_room_for_all_that_makes_a_system() -> None:
    """Also for what brains add to it, and for nothing beside it."""
    for stage, patterns in (PARTS | EXTRAS).items():
        for pattern in patterns:
            assert unpacking.belongs(f"system/{stage}/{pattern.replace('*', 'json')}"), (stage, pattern)
    for name in ("system/brains/maps.npy", "system/gan/steps.json", "brains/scan_conformal.json", "system/gan/../score/a.skops"):
        assert not unpacking.belongs(name)


def test_export_refuses_what_is_not_finished_or_could_run_code(system_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "toy"
    shutil.copytree(system_run, run)
    generator = next(run.glob("gan-*")) / "generator.safetensors"
    generator.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(UserError, match=r"generator.safetensors: is no safetensors file; a pickle, perhaps"):
        export_run(run, tmp_path / "out.zip")
    (next(run.glob("score-*")) / "manifest.json").unlink()
    with pytest.raises(UserError, match="not finished yet: score"):
        export_run(run, tmp_path / "out.zip")
    assert not list(tmp_path.glob("out.zip*"))


# ---- others


def without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: data for key, data in files.items() if key != name}


def changed(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: files | {name: data}


def listed(change: Callable[[Files], Files]) -> Callable[[Files], Files]:
    """With checksums that fit, as somebody who means harm would make them."""
    return lambda files: summed(change(files))


def skops_with_pickle() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("model.pkl", pickle.dumps([1]))
    return out.getvalue()


GENERATOR, CONFIG = "system/gan/generator.safetensors", "system/config.yaml"
LISTED = {"format": "normscape-bundle", "version": 1, "files": {"a": {"sha256": "x", "bytes": 1}}}
ABOUT = {"model": "normscape-toy", "run_id": "x", "normscape_version": "0", "tags": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(GENERATOR, b"\x00" * 200), f"{GENERATOR}: its checksum is wrong"),
        (without(GENERATOR), f"{GENERATOR}: missing"),
        (listed(without("model_card.md")), "model_card.md: missing"),
        (changed("notes.txt", b"hello"), "notes.txt: not in its list"),
        (listed(changed("notes.txt", b"hello")), "notes.txt: a bundle holds no such file"),
        (listed(changed("system/gan/weights.pkl", b"x")), "weights.pkl: a bundle holds no such file; pickles and code"),
        (listed(changed("system/score/hook.py", b"x")), "hook.py: a bundle holds no such file"),
        (listed(changed(GENERATOR, pickle.dumps({"a": 1}))), "generator.safetensors: is no safetensors file; a pickle"),
        (listed(changed("system/score/forest.skops", skops_with_pickle())), r"forest.skops: holds a pickle \(model.pkl\)"),
        (listed(changed("system/score/forest.skops", pickle.dumps([1]))), "forest.skops: is no skops file; a pickle"),
        (listed(changed("test_scores.parquet", b"nothing")), "test_scores.parquet: is no Parquet file"),
        (listed(changed("model_card.md", b"\xff\xfe\x00")), "model_card.md: is no text"),
        (listed(changed("../outside.json", b"{}")), "../outside.json: its path leads out of the bundle"),
        (listed(changed("system/../../x.json", b"{}")), "its path leads out of the bundle"),
        (listed(changed("/etc/passwd", b"x")), "/etc/passwd: its path leads out of the bundle"),
        (listed(changed("system\\x.json", b"{}")), "its path leads out of the bundle"),
        (listed(changed("C:/x.json", b"{}")), "its path leads out of the bundle"),
        (listed(changed("system/", b"")), "no plain file, but a link or a folder"),
        (without("checksums.json"), "no bundle of normscape: checksums.json is missing"),
        (changed("checksums.json", b"[1"), "checksums.json: not readable"),
        (changed("checksums.json", b"{}"), "checksums.json does not say `normscape-bundle`"),
        (lambda files: summed(files, version=2), "format version 2; this normscape knows version 1: update it"),
        (changed("checksums.json", json.dumps(LISTED).encode()), "checksums.json: files.a.sha256"),
        (listed(changed("bundle.json", b"{}")), "bundle.json: model: Field required"),
        (listed(changed("bundle.json", json.dumps(ABOUT | {"model": "../up"}).encode())), "bundle.json: model: String should"),
        (listed(changed(CONFIG, b"base: /etc/hosts\n")), "inherits from a file outside of the bundle"),
        (
            lambda files: summed(files | {CONFIG: files[CONFIG] + b"nme: toy\n"}),
            r"(?s)made for another version of normscape \(.*nme: unknown key",
        ),
        (listed(without("system/latents/style_space.safetensors")), "its system cannot be used"),
        (listed(changed("system/score/detectors.json", b"{}")), "its system cannot be used"),
    ],
)
def test_what_is_no_bundle_is_refused_and_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Files], Files], message: str
) -> None:
    """One message; no model, no store, and no temporary folder."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    path = packed(tmp_path / "bad.zip", change(read(bundle)))
    with pytest.raises(BundleError, match=message) as caught:
        import_bundle(path, f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "temporary"]
    assert not list(temporary.iterdir())


def test_links_are_refused(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "link.zip"
    entry = zipfile.ZipInfo("system/gan/generator.safetensors")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in without(GENERATOR)(read(bundle)).items():
            archive.writestr(name, data)
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match=r"generator.safetensors: no plain file, but a link or a folder"), unpacked(path):
        pass


def test_a_name_that_stands_twice_is_refused(bundle: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "twice.zip", read(bundle))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model_card.md", "another")
    with pytest.raises(BundleError, match=r"model_card.md: stands twice"), unpacked(path):
        pass


def test_bombs_are_refused_before_they_are_unpacked(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the archive says of itself; by their number; by what lies in an archive within; by the list's own size."""
    zeros = packed(tmp_path / "zeros.zip", {"model_card.md": b"\0" * 5_000_000}, compression=zipfile.ZIP_DEFLATED)
    assert zeros.stat().st_size < 10_000
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("something was unpacked"))
    with pytest.raises(BundleError, match=r"too large: 0.0 GiB in 1 files"), unpacked(zeros, 1_000_000):
        pass
    monkeypatch.undo()
    many = packed(tmp_path / "many.zip", {f"{i}.json": b"" for i in range(unpacking.MAX_FILES + 1)})
    with pytest.raises(BundleError, match=r"too large: .* in 501 files"), unpacked(many):
        pass
    inner = packed(tmp_path / "inner.skops", {"schema.json": b" " * 3_000_000}, compression=zipfile.ZIP_DEFLATED)
    files = summed(read(bundle) | {"system/score/forest.skops": inner.read_bytes()})
    nested = packed(tmp_path / "nested.zip", files)
    with pytest.raises(BundleError, match=r"forest.skops: unpacks to more than the limit"), unpacked(nested, 2_000_000):
        pass
    long = packed(tmp_path / "long.zip", {"checksums.json": b" " * (unpacking.MAX_LIST_BYTES + 1)})
    with pytest.raises(BundleError, match=r"checksums.json: larger than 1 MiB"), unpacked(long):
        pass


def test_an_archive_that_lies_about_a_size_is_damaged(bundle: Path, tmp_path: Path) -> None:
    """The list announces less than there is: no more than that is unpacked."""
    files = read(bundle)
    told = json.loads(files["checksums.json"])
    told["files"][GENERATOR]["bytes"] = 10
    path = packed(tmp_path / "short.zip", files | {"checksums.json": json.dumps(told).encode()})
    with pytest.raises(BundleError, match=r"generator.safetensors: its checksum is wrong"), unpacked(path):
        pass


@pytest.mark.parametrize("data", [b"", b"no zip at all", b"PK\x03\x04 cut off"])
def test_other_files_are_no_bundles(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.zip"
    path.write_bytes(data)
    with pytest.raises(BundleError, match="not a readable zip archive"), unpacked(path):
        pass
    with pytest.raises(BundleError, match="no such file"), unpacked(tmp_path / "gone.zip"):
        pass
