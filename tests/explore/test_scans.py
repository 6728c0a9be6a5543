"""Dropped scans: what is refused and how, who sees what, the queue, and the map at the end."""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from normscape.explore.storage import clean_name
from normscape.explore.trained import Trained
from tests.explore.visitors import Serve, Site, wait_for


def nifti(tmp_path: Path, values: np.ndarray, name: str = "made.nii") -> bytes:
    """A NIfTI file's bytes."""
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4, 4, 1])), tmp_path / name)
    return (tmp_path / name).read_bytes()


def folders(site: Site) -> list[Path]:
    """What the server keeps."""
    return sorted(site.listening.storage.folder.iterdir())


def test_what_is_no_scan_gets_a_sentence_and_leaves_nothing(
    brains: Trained, serve: Serve, scan_file: Path, tmp_path: Path
) -> None:
    """Each mistake on its own; the name in the message is the person's; the page answers on."""
    site = serve(brains)
    person = site.browser().opened()
    whole = gzip.decompress(scan_file.read_bytes())
    random = np.random.default_rng(0)
    fourth = nifti(tmp_path, random.random((40, 40, 40, 2), np.float32))
    holes = random.random((40, 40, 40), np.float32)
    holes[3, 4, 5] = np.nan
    huge = bytearray(whole[:400])
    huge[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    mistakes: list[tuple[bytes, str, dict[str, str], str]] = [
        (b"no scan", "notes.txt", {}, "notes.txt: expected a NIfTI file"),
        (b"no scan at all", "head.nii", {}, "head.nii: expected a NIfTI file, found something else"),
        (b"", "head.nii", {}, "head.nii: expected a NIfTI file, found an empty one"),
        (b"no scan at all", "head.nii.gz", {}, "head.nii.gz: not a readable file"),
        (gzip.compress(b"x" * 1000), "head.nii.gz", {}, "head.nii.gz: expected a NIfTI file"),
        (scan_file.read_bytes()[:5000], "cut.nii.gz", {}, "cut.nii.gz: the compressed file is cut off"),
        (whole[:5000], "cut.nii", {}, "cut.nii: cut off; 5000 of"),
        (gzip.compress(whole[:5000]), "cut.nii.gz", {}, "cut.nii.gz: cut off"),
        (fourth, "4d.nii", {}, "4d.nii: expected one 3D image; found 40 x 40 x 40 x 2 voxels"),
        (nifti(tmp_path, holes), "holes.nii", {}, "holes.nii: 1 of 64000 values are not finite"),
        (nifti(tmp_path, np.ones((40, 40, 40), np.float32)), "flat.nii", {}, "flat.nii: all its values are 1"),
        (bytes(huge), "huge.nii", {}, "huge.nii: its header says 30000 x 30000 x 30000 voxels"),
        (gzip.compress(whole + b"\0" * (len(whole) + (2 << 20))), "bomb.nii.gz", {}, "bomb.nii.gz: the file holds far more than"),
        (whole, "head.nii", {"age": ""}, "The age is missing"),
        (whole, "head.nii", {"age": "old"}, "age old: expected years"),
        (whole, "head.nii", {"age": "-1"}, "expected years above 0"),
        (whole, "head.nii", {"strip": "knife"}, "strip: choose none, deepbet, hdbet"),
        (whole, "", {}, "expected a NIfTI file"),
    ]  # fmt: skip
    for content, name, query, message in mistakes:
        answer = person.bring(content, name, **query)
        assert (answer.status, message in answer.error) == (422, True), (name, answer.body)
        assert str(site.listening.storage.folder) not in answer.error
        assert folders(site) == [], name
    assert person.ask("PUT", "/api/scans", whole).error == "name: field required"
    assert person.ask("GET", "/api/scans").json == {"scans": []}


def test_a_file_that_is_too_large_is_stopped_while_it_arrives(brains: Trained, serve: Serve) -> None:
    """By its announced length at once, and without one as soon as the limit is passed; nothing stays."""
    site = serve(brains, most_bytes=1 << 20)
    person = site.browser().opened()
    answer = person.ask("PUT", "/api/scans", headers={"Content-Length": str(1 << 40)}, name="a.nii", age="63")
    assert (answer.status, "a.nii: larger than 1 megabytes" in answer.error) == (413, True)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 << 20:
            sent += 1 << 16
            yield b"\0" * (1 << 16)

    own = f"127.0.0.1:{site.port}"
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    headers = {"Host": own, "Origin": f"http://{own}", "Cookie": person.cookie}
    try:
        connection.request("PUT", "/api/scans?name=a.nii&age=63", endless(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server had enough before the sender had
    connection.close()
    assert sent < 64 << 20
    assert folders(site) == []


def test_a_sender_who_leaves_leaves_nothing(brains: Trained, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, and no stack trace in the terminal."""
    site = serve(brains)
    person = site.browser().opened()
    own = f"127.0.0.1:{site.port}"
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
    connection.putrequest("PUT", "/api/scans?name=a.nii&age=63", skip_host=True)
    for name, value in {"Host": own, "Origin": f"http://{own}", "Cookie": person.cookie, "Content-Length": "1000000"}.items():
        connection.putheader(name, value)
    connection.endheaders(b"x" * 1000)
    wait_for(lambda: len(folders(site)) == 1)
    connection.close()
    wait_for(lambda: folders(site) == [])
    assert person.ask("GET", "/api/scans").json == {"scans": []}
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_two_people_one_worker(brains: Trained, serve: Serve, scan_file: Path) -> None:
    """Each sees only what is theirs, with its place in the one queue; what they drop is mapped one after the other.

    What comes out is on the scan's own grid, has the person's name for it, and is what the page offers; a scan that is deleted
    or whose owner is somebody else is not there at all.
    """
    site = serve(brains, most_uploads=4)
    first, second = site.browser().opened(), site.browser().opened()
    content = scan_file.read_bytes()
    mine = [first.bring(content, name).json["id"] for name in ("one.nii.gz", "../../two <b>.nii.gz")]
    theirs = second.bring(content, "three.nii.gz", age="unknown").json["id"]
    fourth = second.bring(content, "four.nii.gz").json["id"]
    answer = second.bring(content, "five.nii.gz")
    assert (answer.status, "there are 4 scans already" in answer.error) == (409, True)
    seen = {scan["id"]: scan for person in (first, second) for scan in person.ask("GET", "/api/scans").json["scans"]}
    assert [scan["name"] for scan in seen.values()] == ["one.nii.gz", "two <b>.nii.gz", "three.nii.gz", "four.nii.gz"]
    waiting = [scan["place"] for scan in seen.values() if scan["state"] == "queued"]
    assert waiting == sorted(waiting)
    assert seen[fourth]["state"] == "queued"
    assert seen[fourth]["place"] >= 1
    assert second.ask("POST", f"/api/scans/{fourth}/cancel").json["state"] == "cancelled"
    for path in (f"/api/scans/{mine[0]}/scan", f"/api/scans/{mine[0]}/summary.json"):
        assert second.ask("GET", path).status == 404
    for method, path in (("DELETE", f"/api/scans/{mine[0]}"), ("POST", f"/api/scans/{mine[0]}/cancel")):
        answer = second.ask(method, path)
        assert (answer.status, "no such scan" in answer.error) == (404, True)

    done = first.wait(mine[1], "finished", "failed")
    assert done["state"] == "finished", done
    assert {"anomaly_map.nii.gz", "overlay.png", "index.html", "regions.csv", "summary.json"} <= set(done["result"]["files"])
    base = f"/api/scans/{mine[1]}"
    answer = first.ask("GET", f"{base}/anomaly_map.nii.gz")
    saved = scan_file.parent / "found.nii.gz"
    saved.write_bytes(answer.body)
    found, given = (sitk.ReadImage(str(path)) for path in (saved, scan_file))
    assert (found.GetSize(), found.GetSpacing()) == (given.GetSize(), given.GetSpacing())
    assert 0 < sitk.GetArrayFromImage(found).max() <= 1
    page = first.ask("GET", f"{base}/index.html")
    assert b"two &lt;b&gt;.nii.gz" in page.body
    policy = [part.strip() for part in page.headers["content-security-policy"].split(";")]
    assert "sandbox allow-scripts" in policy  # and not allow-same-origin: it cannot ask this server for anything
    assert "default-src 'none'" in policy
    assert first.ask("GET", f"{base}/overlay.png").body.startswith(b"\x89PNG")
    assert first.ask("GET", f"{base}/scan").body == content
    assert json.loads(first.ask("GET", f"{base}/summary.json").body)["scan"] == "two <b>.nii.gz"
    for name in ("preprocessed", "..%2fscan.nii.gz", "%2e%2e/scan.nii.gz", "scan.nii.gz", "..%2f..%2f..%2fetc%2fpasswd"):
        assert first.ask("GET", f"{base}/{name}").status == 404, name
    done = second.wait(theirs, "finished", "failed")
    assert "was read from the scan by the age network" in done["result"]["notes"][0]
    assert first.ask("DELETE", base).status == 200
    assert first.ask("GET", f"{base}/overlay.png").status == 404
    assert len(folders(site)) == 3
    assert second.bring(content, "five.nii.gz").status == 201


@pytest.mark.slow
def test_what_runs_can_be_stopped(brains: Trained, serve: Serve, scan_file: Path) -> None:
    """A scan that is deleted while it is being mapped goes with all its files; the next one gets its map."""
    site = serve(brains)
    person = site.browser().opened()
    first, second = (person.bring(scan_file.read_bytes()).json["id"] for _ in range(2))
    person.wait(first, "running")
    assert person.ask("DELETE", f"/api/scans/{first}").status == 200
    assert [scan["id"] for scan in person.ask("GET", "/api/scans").json["scans"]] == [second]
    assert person.wait(second, "finished", "failed")["state"] == "finished"
    assert [path.name for path in folders(site)] == [second]


def test_a_server_without_scans_takes_none(chairs: Trained, serve: Serve, scan_file: Path) -> None:
    site = serve(chairs)
    person = site.browser().opened()
    assert person.ask("GET", "/api/about").json["scans"] is None
    answer = person.bring(scan_file.read_bytes())
    assert (answer.status, "a scan" in answer.error, folders(site)) == (422, True, [])


def test_files_are_deleted_at_the_end_unless_a_folder_was_given(
    brains: Trained, serve: Serve, scan_file: Path, tmp_path: Path
) -> None:
    from normscape.explore.server import Settings, listening

    kept = []
    for folder in (None, tmp_path / "maps"):
        with listening(brains, Settings("127.0.0.1", 0, folder, 1 << 20, 2, None)) as page:
            with page.storage.receive("somebody", "a.nii", 1) as upload:
                upload.path.write_bytes(b"x")
            assert upload.folder.stat().st_mode & 0o777 == 0o700
        kept.append(upload.path.exists())
    assert kept == [False, True]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("head.nii.gz", "head.nii.gz"),
        ("C:\\scans\\head.nii", "head.nii"),
        ("../../etc/passwd", "passwd"),
        ("a\x00b\r\n\u202eiin.nii", "abiin.nii"),
        ("..", "scan"),
        ("", "scan"),
        ("Kopf größe 日本.nii", "Kopf größe 日本.nii"),
    ],
)
def test_names_are_for_the_eye(name: str, shown: str) -> None:
    assert clean_name(name) == shown


def test_a_long_name_keeps_its_ending() -> None:
    found = clean_name("x" * 500 + ".nii.gz")
    assert found.endswith(".nii.gz")
    assert len(found) == 80
