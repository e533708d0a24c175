"""Sources: lines and rows out of files, wherever they lie."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ltsft.config.source import Source
from ltsft.data import locations
from ltsft.data.sources import ensure_local, fingerprint, open_lines, read_rows, read_text
from ltsft.errors import SourceError

CONLLU = """\
# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_

# sent_id = 2
1\tSue\tSue\tPROPN\t_\t_\t2\tnsubj\t_\t_
2\tlikes\tlike\tVERB\t_\t_\t0\troot\t_\t_
3\t_\t_\tSYM\t_\t_\t2\tobj\t_\t_
3.1\tlikes\tlike\tVERB\t_\t_\t_\t_\t2:conj\t_
"""


def text_source(path: Path | str) -> Source:
    return Source(scheme="text", location=str(path))


def conllu_source(path: Path | str) -> Source:
    return Source(scheme="conllu", location=str(path))


def lines_of(path: Path, content: bytes, **options: str) -> list[str]:
    path.write_bytes(content)
    return list(open_lines(text_source(path), **options))  # type: ignore[arg-type]


# --- lines ---------------------------------------------------------------------------------------------------------


def test_lines_are_the_same_plain_and_gzip_whatever_the_name(tmp_path: Path) -> None:
    content = "føroyskt mál\n\nönnur regla\nuttan linjuskift".encode()
    expected = ["føroyskt mál", "", "önnur regla", "uttan linjuskift"]
    assert lines_of(tmp_path / "plain.txt", content) == expected
    assert lines_of(tmp_path / "packed.txt", gzip.compress(content)) == expected
    assert lines_of(tmp_path / "plain.gz", content) == expected


def test_byte_order_mark_is_dropped_at_the_start_of_the_file_alone(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", "\ufeffone\n\ufefftwo\n".encode()) == ["one", "\ufefftwo"]


def test_lines_end_at_all_three_newlines_and_at_nothing_else(tmp_path: Path) -> None:
    content = "a\r\nb\rc\n\r\nd\u2028e\u0085f\x0bg\x0ch\x1ci".encode()
    assert lines_of(tmp_path / "a", content) == ["a", "b", "c", "", "d\u2028e\u0085f\x0bg\x0ch\x1ci"]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7])
def test_lines_do_not_depend_on_where_chunks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    content = "\ufeffå\r\n\rbé\n\n\r\r\ncc\r".encode()
    expected = ["å", "", "bé", "", "", "", "cc"]
    assert lines_of(tmp_path / "a", content) == expected
    monkeypatch.setattr(locations, "CHUNK_BYTES", chunk_bytes)
    assert lines_of(tmp_path / "a", content) == expected
    assert lines_of(tmp_path / "b", gzip.compress(content)) == expected


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", b"") == []
    assert lines_of(tmp_path / "b", gzip.compress(b"")) == []


def test_gzip_members_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", gzip.compress(b"a\nb") + gzip.compress(b"c\n") + b"\0" * 9) == ["a", "bc"]


def test_truncated_gzip_is_refused_by_name(tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(5000).hex().encode())
    for size in (len(packed) // 2, len(packed) - 1, 5):
        with pytest.raises(SourceError, match=r"cut\.gz is cut off"):
            lines_of(tmp_path / "cut.gz", packed[:size])


def test_damaged_gzip_is_refused_by_name(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(os.urandom(5000).hex().encode()))
    packed[-6] ^= 1  # the check sum
    with pytest.raises(SourceError, match=r"bad\.gz is damaged gzip"):
        lines_of(tmp_path / "bad.gz", bytes(packed))
    with pytest.raises(SourceError, match=r"bad\.gz is damaged gzip"):
        lines_of(tmp_path / "bad.gz", gzip.compress(b"a\n") + b"not gzip")


def tar(text: bytes = b"a\n") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("text.txt")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lzma.compress(b"a"), "packed with xz; allowed are gzip"),
        (lzma.compress(b"a", format=lzma.FORMAT_ALONE), "packed with lzma;"),
        (bz2.compress(b"a"), "packed with bzip2;"),
        (b"\x04\x22\x4d\x18rest", "packed with lz4;"),
        (b"\x1f\x9d\x90rest", r"packed with compress \(\.Z\);"),
        (b"\x28\xb5\x2f\xfdrest", "packed with zstandard;"),
        (gzip.compress(gzip.compress(b"a")), "packed with gzip twice; unpack it once"),
        (tar(), "a tar archive; a source is one file"),
        (tar(b"one line and another\n" * 20_000), "a tar archive"),
        (gzip.compress(tar()), "a tar archive"),
        (b"PK\x03\x04rest", "a zip archive"),
        (gzip.compress(b"%PDF-1.7 rest"), "is a PDF; allowed is text in UTF-8"),
        ("\ufeff\n<!DOCTYPE html><p>Yes".encode(), "is HTML; allowed is text in UTF-8"),
        (b"<?xml version='1.0'?><mediawiki>", "is XML; allowed is text in UTF-8"),
        ("a".encode("utf-32"), "is UTF-32, and UTF-8 is what is read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_text_is_named_with_its_mend(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(SourceError, match=told):
        lines_of(tmp_path / "a.txt", content)


@pytest.mark.parametrize("line", ["070701 is a date", "BZhura means", "PAR1 le", "PK and LZIP", "<p> is a tag", "7z"])
def test_a_text_that_begins_like_another_format_is_a_text(tmp_path: Path, line: str) -> None:
    assert lines_of(tmp_path / "a.txt", f"{line}\n".encode() * 200) == [line] * 200


def test_missing_file_is_refused_with_a_mend(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file .*gone\.txt; mend the path, set data_root"):
        list(open_lines(text_source(tmp_path / "gone.txt")))
    with pytest.raises(SourceError, match=r"no file .*gone\.txt"):
        fingerprint(text_source(tmp_path / "gone.txt"))
    with pytest.raises(SourceError, match="is a folder"):
        list(open_lines(text_source(tmp_path)))


def test_undecodable_bytes_are_refused_naming_file_line_and_byte(tmp_path: Path) -> None:
    content = "fyrsta\nön\n".encode() + "føroyskt".encode("latin-1") + b"\n"
    with pytest.raises(SourceError, match=r"a\.txt:3: byte 0xf8 at column 2 is not UTF-8, near 'f\\\\xf8royskt'"):
        lines_of(tmp_path / "a.txt", content)


def test_undecodable_bytes_can_be_kept_as_surrogates(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "a", b"f\xf8r\nok\n", errors="surrogateescape") == ["f\udcf8r", "ok"]


def test_utf16_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is UTF-16, and UTF-8 is what is read; convert it: iconv"):
        lines_of(tmp_path / "a", "\ufefføl\n".encode("utf-16-le"))


def test_a_file_without_line_breaks_does_not_go_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltsft.data.sources.LINE_LIMIT_BYTES", 3 * 2**20)
    with pytest.raises(SourceError, match=r"a:2: the line has more than 3 MiB"):
        lines_of(tmp_path / "a", b"ok\n" + b"x" * (5 * 2**20))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.txt.gz"  # 96 MiB in 0.4 MB: a reader that unpacks all of it is seen at once
    line = ("en nokkur orð " * 73).encode()[:1023] + b"\n"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(96):
            file.write(line * 1024)
    tracemalloc.start()
    count = sum(1 for _ in open_lines(text_source(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 96 * 1024
    assert peak < 12 * 2**20


# --- text ----------------------------------------------------------------------------------------------------------


def test_text_is_the_stripped_lines_that_are_not_empty_of_all_sources(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"  one \n\n \t\ntwo\n")
    (tmp_path / "b").write_bytes(gzip.compress(b"three"))
    sources = [text_source(tmp_path / "a"), text_source(tmp_path / "b")]
    assert list(read_text(sources)) == ["one", "two", "three"]


def test_a_source_of_another_scheme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is of the scheme conllu: where text: is needed"):
        list(read_text([conllu_source(tmp_path / "a")]))
    with pytest.raises(SourceError, match="is of the scheme text: where conllu: is needed"):
        list(read_rows(text_source(tmp_path / "a")))


# --- rows ----------------------------------------------------------------------------------------------------------


def test_rows_are_syntactic_words_without_multiword_tokens_and_empty_nodes(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(CONLLU, encoding="utf-8")
    first, second = read_rows(conllu_source(path))
    assert first.words == ("vamos", "nos", "a", "el", "mar")
    assert first.upos == ("VERB", "PRON", "ADP", "DET", "NOUN")
    assert first.heads == (0, 1, 5, 5, 1)
    assert first.deprels == ("root", "obj", "case", "det", "obl")
    assert (first.line, first.source) == (1, f"conllu:{path}")
    assert second.words == ("Sue", "likes", "_")
    assert second.line == 11


def test_rows_survive_windows_newlines_and_comments_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_bytes(b"# a comment\r\n\r\n\r\n" + CONLLU.replace("\n", "\r\n").encode())
    assert [row.line for row in read_rows(conllu_source(path))] == [4, 14]


def replaced(line: int, column: int, value: str) -> str:
    lines = CONLLU.split("\n")
    columns = lines[line - 1].split("\t")
    columns[column - 1] = value
    lines[line - 1] = "\t".join(columns)
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONLLU.replace("\t_\t_\n3-4", "\t_\n3-4"), r":5: .*10 columns with a tab between them, got 9"),
        (replaced(5, 2, ""), r":5: column 2 is empty; write _"),
        (replaced(5, 1, "3"), r":5: words are numbered 1, 2, 3.*got 3 where 2 is due"),
        (replaced(5, 1, "x"), r":5: the first column is .*got 'x'"),
        (replaced(6, 1, "4-5"), r":6: the multi-word token 4-5 must stand before its first word"),
        (replaced(5, 7, "6"), r":5: HEAD of word 2 is 6; allowed is .*\(1 to 5\) or 0"),
        (replaced(5, 7, "2"), r":5: HEAD of word 2 is 2"),
        (replaced(5, 7, "_"), r":5: HEAD is the number of a word.*got '_'"),
        (replaced(5, 7, "0"), r":1: a sentence has exactly one root \(HEAD 0\), this one has 2"),
        (replaced(4, 7, "2"), r":1: a sentence has exactly one root \(HEAD 0\), this one has 0"),
        (replaced(9, 7, "4"), r":\d: the heads from word [45] lead back to it"),
        (CONLLU.replace("\n\n", "\n", 1), r":11: words are numbered.*got 1 where 6 is due.*empty line that is missing"),
    ],
)
def test_malformed_rows_are_refused_naming_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=r"a\.conllu" + message):
        list(read_rows(conllu_source(path)))


def test_malformed_rows_can_be_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(replaced(5, 7, "9"), encoding="utf-8")
    problems: list[SourceError] = []
    rows = list(read_rows(conllu_source(path), on_error=problems.append))
    assert [row.words[0] for row in rows] == ["Sue"]
    assert len(problems) == 1


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_stored_bytes_and_follows_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    for content in (b"one\n", b"two\n"):
        path.write_bytes(gzip.compress(content, mtime=0))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + len(content)))
        assert fingerprint(text_source(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_fingerprint_reads_an_unchanged_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = fingerprint(text_source(path))
    monkeypatch.setattr(locations, "read_stored", None)  # would fail if called
    assert fingerprint(text_source(path)) == first


# --- over the network ----------------------------------------------------------------------------------------------

Respond = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A small HTTP server: files by path, and a list of what went wrong on purpose before they are served."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[Respond] = []
        self.gets = 0
        self.url = ""

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = self.files.get(handler.path.partition("?")[0])
        if handler.command == "GET":
            self.gets += 1
            if self.faults:
                self.faults.pop(0)(handler)
                return
        handler.send_response(404 if body is None else 200)
        handler.send_header("Content-Length", str(len(body or b"")))
        handler.end_headers()
        if body is not None and handler.command == "GET":
            handler.wfile.write(body)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *arguments: object, server_state: Server) -> None:
        self.state = server_state
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.state.respond(self)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def break_after(body: bytes, count: int) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:count])
        handler.close_connection = True

    return respond


def refuse(status: int) -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(locations, "FIRST_PAUSE_SECONDS", 0.01)
    state = Server()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, server_state=state))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()


def test_http_is_read_like_a_file(server: Server, tmp_path: Path) -> None:
    server.files = {"/fo.txt.gz": gzip.compress(b"one\ntwo\n"), "/fo.conllu": CONLLU.encode()}
    source = text_source(f"{server.url}/fo.txt.gz")
    assert list(read_text([source])) == ["one", "two"]
    assert fingerprint(source) == hashlib.sha256(server.files["/fo.txt.gz"]).hexdigest()
    assert len(list(read_rows(conllu_source(f"{server.url}/fo.conllu")))) == 2


def test_http_goes_on_where_a_connection_broke(server: Server) -> None:
    body = b"".join(b"line %d\n" % i for i in range(400_000))
    server.files = {"/a": body}
    server.faults = [break_after(body, 3_000_000), refuse(503), break_after(body, 10)]
    assert sum(1 for _ in open_lines(text_source(f"{server.url}/a"))) == 400_000
    assert server.gets == 4


def test_http_file_that_changes_while_it_is_read_is_refused(server: Server) -> None:
    body = b"a\n" * 2_000_000
    server.files = {"/a": b"b\n" * 2_000_000}
    server.faults = [break_after(body, 3_000_000)]
    with pytest.raises(SourceError, match=r"/a changed while it was read"):
        list(open_lines(text_source(f"{server.url}/a")))


def test_missing_http_file_is_refused_without_trying_again(server: Server) -> None:
    with pytest.raises(SourceError, match=r"there is no file http://127\.0\.0\.1:\d+/gone; mend the URL"):
        list(open_lines(text_source(f"{server.url}/gone")))


def test_server_that_is_down_is_named_and_secrets_in_the_url_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "FIRST_PAUSE_SECONDS", 0.0)
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:9/a cannot be read .*5 attempts") as caught:
        list(open_lines(text_source("http://me:hidden@127.0.0.1:9/a?signature=hidden")))
    assert "hidden" not in str(caught.value)


def test_unknown_protocol_is_refused() -> None:
    with pytest.raises(SourceError, match=r"allowed are a local path, https:// and s3://"):
        list(open_lines(text_source("nosuch://host/a")))


# --- origins -------------------------------------------------------------------------------------------------------


def with_origin(path: Path, origin: str) -> Source:
    return Source(scheme="text", location=str(path), origin=origin)


def test_missing_file_is_fetched_from_its_origin_once(server: Server, tmp_path: Path) -> None:
    server.files = {"/fo.txt.gz": gzip.compress(b"one\n")}
    source = with_origin(tmp_path / "text" / "fo.txt.gz", f"{server.url}/fo.txt.gz")
    assert list(read_text([source])) == ["one"]
    assert fingerprint(source) == hashlib.sha256(server.files["/fo.txt.gz"]).hexdigest()
    ensure_local(source)
    assert server.gets == 1
    assert [p.name for p in (tmp_path / "text").iterdir() if not p.name.endswith(".lock")] == ["fo.txt.gz"]


def test_a_file_that_is_there_needs_no_origin(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"mine\n")
    assert list(open_lines(with_origin(path, "http://127.0.0.1:9/a"))) == ["mine"]


def test_plain_origin_is_packed_to_the_same_bytes_each_time(server: Server, tmp_path: Path) -> None:
    server.files = {"/fo.conllu": CONLLU.encode()}
    paths = [tmp_path / "a" / "test.conllu.gz", tmp_path / "b" / "other.conllu.gz"]
    for path in paths:
        ensure_local(with_origin(path, f"{server.url}/fo.conllu"))
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert gzip.decompress(first) == CONLLU.encode()


def test_broken_download_leaves_no_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "ATTEMPTS", 3)
    server.files = {"/a": b"x" * 100}
    server.faults = [break_after(server.files["/a"], 50)] * 9
    source = with_origin(tmp_path / "a", f"{server.url}/a")
    with pytest.raises(SourceError, match=r"a is missing and cannot be fetched from its origin: .*3 attempts"):
        ensure_local(source)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []
    server.faults.clear()
    ensure_local(source)
    assert (tmp_path / "a").read_bytes() == server.files["/a"]


def test_concurrent_fetches_download_once(server: Server, tmp_path: Path) -> None:
    server.files = {"/a": b"x" * 2_000_000}
    source = with_origin(tmp_path / "a", f"{server.url}/a")
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: len(next(open_lines(source))), range(8)))
    assert sizes == [2_000_000] * 8
    assert server.gets == 1


# --- S3 ------------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_s3_is_read_with_the_credentials_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        _, port = moto.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("texts")
        content = gzip.compress(b"".join(b"regla %d\n" % i for i in range(1000)))
        bucket.pipe_file("texts/fo.txt.gz", content)
        source = text_source("s3://texts/fo.txt.gz")
        assert list(read_text([source])) == [f"regla {i}" for i in range(1000)]
        assert fingerprint(source) == hashlib.sha256(content).hexdigest()
        with pytest.raises(SourceError, match=r"there is no file s3://texts/gone\.txt; mend the URL"):
            list(open_lines(text_source("s3://texts/gone.txt")))
    finally:
        moto.stop()


# --- real data -----------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_treebanks_and_texts_are_read_whole(shared: Path) -> None:
    faroese = list(read_rows(conllu_source(shared / "data/ud/faroese_oft/test.conllu.gz")))
    assert (len(faroese), sum(len(row.words) for row in faroese)) == (1208, 10002)
    assert sum(1 for _ in read_text([text_source(shared / "data/text/mt.txt.gz")])) == 6412


def test_a_row_has_the_sentence_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "a.conllu"
    word = "{}\t{}\t_\tX\t_\t_\t{}\tdep\t_\t_"
    file.write_text(
        "# text = Cha nel.\n1-2\tCha\t_\t_\t_\t_\t_\t_\t_\t_\n"
        + "\n".join([word.format(1, "Ch", 0), word.format(2, "a", 1), word.format(3, "nel", 1)])
        + "\n\n"
        + word.format(1, "Ayns", 0)
        + "\n\n"
    )
    source = Source(scheme="conllu", location=str(file))
    assert [row.text for row in read_rows(source)] == ["Cha nel.", "Ayns"]
