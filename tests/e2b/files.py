"""Steps: files, what happens to them, and how they and ports are reached without the SDK."""

import datetime
import hashlib
import io
import json
import os
import time
import urllib.parse

import e2b
from e2b.sandbox.filesystem import filesystem as filesystem_types
from steps import BIG, EVERY_BYTE, FILE_NOT_FOUND, fetch, out, part, raises, same, step, takes, until


@step("files.text")
def text_file(here):
    files, path = here.sandbox.files, f"{here.place('text')}/deep/er/file.txt"
    written = files.write(path, "grüße\r\nthere")
    same((written.name, written.path, getattr(written.type, "value", written.type)), ("file.txt", path, "file"))
    same(files.read(path), "grüße\r\nthere")
    files.write(path, "shorter")
    same(files.read(path), "shorter")


@step("files.bytes")
def bytes_file(here):
    path = f"{here.place('bytes')}/file"
    here.sandbox.files.write(path, EVERY_BYTE)
    same(bytes(here.sandbox.files.read(path, format="bytes")), EVERY_BYTE)


@step("files.empty")
def empty_file(here):
    path = f"{here.place('empty')}/file"
    here.sandbox.files.write(path, "")
    same((here.sandbox.files.read(path), here.sandbox.files.get_info(path).size), ("", 0))
    same(bytes(here.sandbox.files.read(path, format="bytes")), b"")


@step("files.home")
def file_at_home(here):
    written = here.sandbox.files.write("at/home.txt", "relative")
    same((written.path, here.sandbox.files.read("/home/user/at/home.txt")), ("/home/user/at/home.txt", "relative"))


@step("files.large")
def large_file(here):
    path = f"{here.place('large')}/file"
    here.sandbox.files.write(path, BIG)
    same(out(here.sandbox, f"sha256sum <{path}"), f"{hashlib.sha256(BIG).hexdigest()}  -\n")
    assert bytes(here.sandbox.files.read(path, format="bytes")) == BIG


@step("files.stream")
def stream_file(here):
    path = f"{here.place('stream')}/file"
    here.sandbox.files.write(path, io.BytesIO(BIG))
    same(here.sandbox.files.get_info(path).size, len(BIG))
    assert b"".join(here.sandbox.files.read(path, format="stream")) == BIG


@step("files.iterable", has=lambda: hasattr(filesystem_types, "SyncWriteEntry"))
def file_of_an_iterable(here):
    path = f"{here.place('iterable')}/file"
    here.sandbox.files.write(path, (BIG[at : at + (1 << 20)] for at in range(0, len(BIG), 1 << 20)))
    same(out(here.sandbox, f"sha256sum <{path}"), f"{hashlib.sha256(BIG).hexdigest()}  -\n")


@step("files.octets", has=lambda: takes(part("files").write, "use_octet_stream"))
def file_of_octets(here):
    path = f"{here.place('octets')}/a ü?&+%20"
    here.sandbox.files.write(path, EVERY_BYTE, use_octet_stream=True)
    same(bytes(here.sandbox.files.read(path, format="bytes")), EVERY_BYTE)


@step("files.gzip", has=lambda: takes(part("files").write, "gzip"))
def compressed_file(here):
    path, text = f"{here.place('gzip')}/file", "again and again\n" * 100_000
    here.sandbox.files.write(path, text, gzip=True)
    same(out(here.sandbox, f"wc -c <{path}"), f"{len(text)}\n")
    same(here.sandbox.files.read(path, gzip=True), text)


@step("files.many")
def many_files(here):
    place = here.place("many")
    contents = {"one": "1", "two.bin": EVERY_BYTE, "new/three": "", "grüße 😀": "four", "big": BIG[: 1 << 20]}
    written = here.sandbox.files.write_files([{"path": f"{place}/{name}", "data": data} for name, data in contents.items()])
    same([one.path for one in written], [f"{place}/{name}" for name in contents])
    for name, data in contents.items():
        data = data.encode() if isinstance(data, str) else data
        same(bytes(here.sandbox.files.read(f"{place}/{name}", format="bytes")), data)


@step("files.names")
def odd_names(here):
    place = here.place("names")
    names = ["grüße 😀", "a+b c", "100%", "%41", "q?x=1&y", "hash#", "it's", 'say "so"', "back\\slash", "semi;colon", " spaces "]
    for name in names:
        here.sandbox.files.write(f"{place}/{name}", name)
    same(sorted(one.name for one in here.sandbox.files.list(place)), sorted(names))
    for name in names:
        same(here.sandbox.files.read(f"{place}/{name}"), name)


@step("files.exists")
def file_exists(here):
    files, place = here.sandbox.files, here.place("exists")
    files.write(f"{place}/file", "")
    same([files.exists(path) for path in (f"{place}/file", place, f"{place}/no", f"{place}/no/where")], [True, True, False, False])


@step("files.info")
def file_info(here):
    files, place = here.sandbox.files, here.place("info")
    files.write(f"{place}/file", "12345")
    out(here.sandbox, f"chmod 640 {place}/file && ln -s file {place}/link")
    found = files.get_info(f"{place}/file")
    same((found.name, found.path, found.type.value, found.size), ("file", f"{place}/file", "file", 5))
    same((found.owner, found.group, found.mode & 0o7777), ("user", "user", 0o640))
    assert found.permissions.endswith("rw-r-----"), found
    moment = found.modified_time
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    assert abs(time.time() - moment.timestamp()) < 600, found
    same(found.symlink_target, None)
    same(files.get_info(place).type.value, "dir")
    same(files.get_info(f"{place}/link").symlink_target, f"{place}/file")
    with raises(FILE_NOT_FOUND):
        files.get_info(f"{place}/no")


@step("files.list")
def list_files(here):
    files, place = here.sandbox.files, here.place("list")
    for name in ("top", "a/mid", "a/b/low"):
        files.write(f"{place}/{name}", name)
    found = {depth: sorted((one.path, one.type.value) for one in files.list(place, depth=depth)) for depth in (1, 2, 3)}
    wanted = [(f"{place}/a", "dir"), (f"{place}/top", "file")]
    same(found[1], wanted)
    wanted += [(f"{place}/a/b", "dir"), (f"{place}/a/mid", "file")]
    same(found[2], sorted(wanted))
    same(found[3], sorted(wanted + [(f"{place}/a/b/low", "file")]))
    with raises(FILE_NOT_FOUND):
        files.list(f"{place}/no")
    with raises(e2b.InvalidArgumentException):
        files.list(f"{place}/top")


@step("files.rename")
def rename(here):
    files, place = here.sandbox.files, here.place("rename")
    files.write(f"{place}/old", "same")
    files.make_dir(f"{place}/dir")
    same(files.rename(f"{place}/old", f"{place}/dir/new").path, f"{place}/dir/new")
    same((files.exists(f"{place}/old"), files.read(f"{place}/dir/new")), (False, "same"))
    with raises(FILE_NOT_FOUND):
        files.rename(f"{place}/old", f"{place}/newer")


@step("files.make_dir")
def make_dir(here):
    path = f"{here.place('made')}/a/b"
    same([here.sandbox.files.make_dir(path) for _ in range(2)], [True, False])
    same(here.sandbox.files.get_info(path).type.value, "dir")


@step("files.remove")
def remove(here):
    files, place = here.sandbox.files, here.place("remove")
    for name in ("file", "dir/deep/file"):
        files.write(f"{place}/{name}", "")
        files.remove(f"{place}/{name.split('/')[0]}")
    same(files.list(place), [])
    # What is not there is removed already.
    files.remove(f"{place}/no")


@step("files.errors")
def file_errors(here):
    files, place = here.sandbox.files, here.place("errors")
    for format_ in ("text", "bytes", "stream"):
        with raises(FILE_NOT_FOUND):
            files.read(f"{place}/no", format=format_)
    with raises(e2b.InvalidArgumentException):
        files.read(place)
    with raises(e2b.InvalidArgumentException):
        files.write(place, "a directory")
    files.write(f"{place}/file", "")
    with raises(e2b.InvalidArgumentException):
        files.make_dir(f"{place}/file")


@step("files.user")
def file_of_another_user(here):
    files = here.sandbox.files
    files.write("/root/secret/file", "root's", user="root")
    same(files.read("/root/secret/file", user="root"), "root's")
    same(files.get_info("/root/secret/file", user="root").owner, "root")
    with raises(e2b.AuthenticationException, e2b.InvalidArgumentException):
        files.read("/home/user/.profile", user="nobody-here")


@step("files.metadata", has=lambda: takes(part("files").write, "metadata"))
def file_metadata(here):
    files, path = here.sandbox.files, f"{here.place('metadata')}/file"
    given = {"author": "Ada", "purpose": "a test: 100 %"}
    same(files.write(path, "with words", metadata=given).metadata, given)
    same(files.get_info(path).metadata, given)
    files.write(path, "without")
    same(files.get_info(path).metadata, None)


# --- watching ---


def seen(watch, wanted, into):
    """Asks for events until this one came."""

    def look():
        into.extend((event.type.value, event.name) for event in watch.get_new_events())
        return wanted in into

    until(f"the event {wanted}, there were {into}", look)


@step("watch")
def watch(here):
    files, place, events = here.sandbox.files, here.place("watch"), []
    watching = files.watch_dir(place)
    same(watching.get_new_events(), [])
    files.write(f"{place}/new", "first")
    seen(watching, ("create", "new"), events)
    files.write(f"{place}/new", "second")
    seen(watching, ("write", "new"), events)
    out(here.sandbox, f"chmod 600 {place}/new")
    seen(watching, ("chmod", "new"), events)
    files.rename(f"{place}/new", f"{place}/newer")
    seen(watching, ("rename", "new"), events)
    seen(watching, ("create", "newer"), events)
    files.remove(f"{place}/newer")
    seen(watching, ("remove", "newer"), events)
    watching.stop()
    with raises(e2b.SandboxException):
        watching.get_new_events()
    with raises(e2b.NotFoundException):
        files.watch_dir(f"{place}/no")


@step("watch.recursive")
def watch_below(here):
    files, place, events = here.sandbox.files, here.place("below"), []
    files.make_dir(f"{place}/a/b")
    watching = files.watch_dir(place, recursive=True)
    files.write(f"{place}/a/b/file", "")
    seen(watching, ("create", "a/b/file"), events)
    # Also in directories that were made since.
    files.make_dir(f"{place}/new")
    seen(watching, ("create", "new"), events)
    files.write(f"{place}/new/file", "")
    seen(watching, ("create", "new/file"), events)
    watching.stop()


@step("watch.entry", has=lambda: takes(part("files").watch_dir, "include_entry"))
def watch_with_entries(here):
    files, place = here.sandbox.files, here.place("entries")
    watching = files.watch_dir(place, include_entry=True)
    files.write(f"{place}/file", "12345")
    events = until("an event", watching.get_new_events)
    same((events[0].type.value, events[0].entry.path, events[0].entry.owner), ("create", f"{place}/file", "user"))
    watching.stop()


# --- without the SDK ---


@step("url.download")
def signed_download(here):
    path = f"{here.place('url')}/ü file+&.bin"
    here.sandbox.files.write(path, EVERY_BYTE)
    for expires in (None, 60):
        same(fetch(here.sandbox.download_url(path, use_signature_expiration=expires)), (200, EVERY_BYTE))
    same(fetch(here.sandbox.download_url(path, user="root")), (200, EVERY_BYTE))


@step("url.upload")
def signed_upload(here):
    path = f"{here.place('url')}/up ü.bin"
    url = here.sandbox.upload_url(path, use_signature_expiration=60)
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="any"\r\nContent-Type: application/octet-stream\r\n\r\n'
    form = head + EVERY_BYTE + b"\r\n--edge--\r\n"
    status, body = fetch(url, {"Content-Type": "multipart/form-data; boundary=edge"}, form)
    same((status, [one["path"] for one in json.loads(body)]), (200, [path]))
    same(bytes(here.sandbox.files.read(path, format="bytes")), EVERY_BYTE)


@step("url.refused")
def signed_badly(here):
    path = f"{here.place('url')}/other"
    here.sandbox.files.write(path, "secret")
    good = here.sandbox.download_url(path)
    parts = urllib.parse.urlsplit(good)
    query = dict(urllib.parse.parse_qsl(parts.query))
    for change in ({"signature": "v1_" + "A" * 43}, {"path": "/etc/passwd"}, {"username": "root"}):
        bad = parts._replace(query=urllib.parse.urlencode({**query, **change})).geturl()
        same((change, fetch(bad)[0]), (change, 401))
    same(fetch(here.sandbox.download_url(path, use_signature_expiration=-10))[0], 401)
    same(fetch(here.sandbox.upload_url(path))[0], 401)


@step("port")
def port(here):
    sandbox, place = here.sandbox, here.place("port")
    sandbox.files.write(f"{place}/word", "from inside")
    handle = sandbox.commands.run("exec python3 -m http.server 8000", background=True, cwd=place, timeout=0)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
    if getattr(sandbox, "traffic_access_token", None):
        headers["E2b-Traffic-Access-Token"] = sandbox.traffic_access_token
    url = f"{os.environ['E2B_SANDBOX_URL']}/word"
    until("the port is open", lambda: fetch(url, headers) == (200, b"from inside"))
    handle.kill()
    with raises(e2b.CommandExitException):
        handle.wait()
    until("the port is closed", lambda: fetch(url, headers)[0] != 200)
    status, body = fetch(url, headers)
    assert status == 502 and b"port is not open" in body, (status, body)
