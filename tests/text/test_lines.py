"""Line N of a file is line N for everybody, and a written file is complete or not there."""

import errno
import gzip
import io
import os
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nmt.errors import ConfigError, DataError, TrainingError
from nmt.text.lines import atomic_write, decode_lines, one_line, open_output, read_lines

NOT_LINE_ENDS = {
    "U+2028": "\u2028",
    "U+2029": "\u2029",
    "U+0085": "\x85",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "file separator": "\x1c",
    "group separator": "\x1d",
    "record separator": "\x1e",
}

GZ_ENDED = (
    r"file\.gz:\d+: cannot be read further: "
    "Compressed file ended before the end-of-stream marker was reached$"
)


def lines_of(content, **options):
    return list(decode_lines(io.BytesIO(content), "name", **options))


def write_and_raise(opening, content, error):
    with opening as output:
        output.write(content)
        output.flush()
        raise error


@pytest.fixture
def write(tmp_path):
    def write(content, name="file.txt"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def umask():
    old = os.umask(0o077)
    yield os.umask
    os.umask(old)


class TestSplitting:
    @pytest.mark.parametrize("character", NOT_LINE_ENDS.values(), ids=NOT_LINE_ENDS.keys())
    def test_only_a_newline_ends_a_line(self, character):
        assert lines_of(f"a{character}b\nc".encode()) == [f"a{character}b", "c"]

    def test_a_lone_carriage_return_reads_as_a_space(self):
        assert lines_of(b"a\rb\nc\r\rd\n") == ["a b", "c  d"]

    def test_one_trailing_carriage_return_is_dropped(self):
        assert lines_of(b"a\r\nb\r\r\nc\r") == ["a", "b ", "c"]

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", []),
            (b"\n", [""]),
            (b"a\nb", ["a", "b"]),
            (b"a\nb\n", ["a", "b"]),
            (b"a\nb\n\n", ["a", "b", ""]),
            (b" a\t\n", [" a\t"]),
        ],
    )
    def test_a_newline_ends_a_line_and_starts_none(self, content, expected):
        assert lines_of(content) == expected

    def test_a_byte_order_mark_is_dropped_at_the_start_of_the_file_only(self):
        bom = "\ufeff".encode()
        assert lines_of(bom + b"a\n" + bom + b"b\n") == ["a", "\ufeffb"]
        assert lines_of(b"a" + bom) == ["a\ufeff"]
        assert lines_of(bom + bom + b"a") == ["\ufeffa"]

    @given(
        st.binary() | st.lists(st.sampled_from([b"\n", b"\r", b"\xef\xbb\xbf", b"a"])).map(b"".join)
    )
    @example(b"\xef\xbb\xbf")
    @example(b"\r")
    def test_there_are_as_many_lines_as_newlines(self, content):
        last = content.rpartition(b"\n")[2]
        lines = lines_of(content, on_invalid=lambda number: None)
        assert len(lines) == content.count(b"\n") + bool(last)
        assert not any("\n" in line or "\r" in line for line in lines)

    @given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r")), min_size=1))
    def test_text_comes_back_as_it_was_written(self, lines):
        content = "".join(f"{line}\n" for line in lines).encode()
        assert lines_of(b"\xef\xbb\xbf" + content) == lines


class TestInvalidUtf8:
    def test_it_is_an_error_that_names_line_and_byte(self, write):
        path = write("good\nschön ".encode() + b"\xff bad\n")
        with pytest.raises(DataError) as caught:
            list(read_lines(path))
        assert str(caught.value) == (
            f"{path}:2: byte 8 of the line is not valid UTF-8; "
            "convert the file to UTF-8 or remove the line on both sides"
        )

    @pytest.mark.parametrize("content", [b"\xc0\x80", b"\xed\xa0\x80", b"a\xe2\x80\nb", b"\x80"])
    def test_overlong_forms_surrogates_and_broken_characters_are_invalid(self, content):
        with pytest.raises(DataError, match=r"^name:1: byte \d of the line is not valid"):
            lines_of(content)

    def test_the_lines_before_it_are_given(self):
        lines = decode_lines(io.BytesIO(b"a\nb\n\xff"), "name")
        assert [next(lines), next(lines)] == ["a", "b"]

    def test_it_is_replaced_and_reported_if_asked(self):
        numbers = []
        assert lines_of(b"a\xffb\nc\n\xe2\x80\n", on_invalid=numbers.append) == [
            "a\ufffdb",
            "c",
            "\ufffd",
        ]
        assert numbers == [1, 3]


class TestReading:
    def test_a_gz_file_reads_as_its_content(self, write):
        content = "\ufeffä\r\n\u2028b\n\nc".encode()
        expected = ["ä", "\u2028b", "", "c"]
        assert list(read_lines(write(content))) == expected
        assert list(read_lines(write(gzip.compress(content), "file.gz"))) == expected

    def test_an_empty_file_has_no_lines(self, write):
        assert list(read_lines(write(b""))) == []
        assert list(read_lines(write(gzip.compress(b""), "file.gz"))) == []

    def test_a_truncated_gz_file_is_an_error(self, write):
        path = write(gzip.compress(b"a\n" * 100)[:-10], "file.gz")
        with pytest.raises(DataError, match=GZ_ENDED):
            list(read_lines(path))

    def test_a_gz_file_that_is_not_gzip_is_an_error(self, write):
        path = write(b"plain text\n", "file.gz")
        with pytest.raises(DataError) as caught:
            list(read_lines(path))
        assert str(caught.value) == f"{path}:1: cannot be read further: Not a gzipped file (b'pl')"

    def test_a_gz_file_with_damaged_data_is_an_error(self, write):
        path = write(gzip.compress(b"a\n")[:10] + b"\xff" * 20, "file.gz")
        with pytest.raises(DataError, match=r"file\.gz:1: cannot be read further: Error -3"):
            list(read_lines(path))

    def test_a_gz_file_with_a_wrong_checksum_is_an_error(self, write):
        content = bytearray(gzip.compress(b"a\n"))
        content[-5] ^= 1
        with pytest.raises(DataError, match="cannot be read further: CRC check failed"):
            list(read_lines(write(content, "file.gz")))

    @pytest.mark.parametrize("name", ["absent.txt", "absent.gz"])
    def test_a_missing_file_is_an_error(self, tmp_path, name):
        path = tmp_path / name
        with pytest.raises(ConfigError) as caught:
            list(read_lines(path))
        assert str(caught.value) == f"{path}: cannot be read: No such file or directory"

    @pytest.mark.parametrize("name", ["folder", "folder.gz"])
    def test_a_folder_is_an_error(self, tmp_path, name):
        path = tmp_path / name
        path.mkdir()
        with pytest.raises(ConfigError) as caught:
            list(read_lines(path))
        assert str(caught.value) == f"{path}: cannot be read: Is a directory"

    def test_a_minus_is_standard_input(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\x85\n\xff\n"), "latin-1"))
        with pytest.raises(DataError, match=r"^standard input:1: byte 2 of the line"):
            list(read_lines("-"))
        assert not sys.stdin.closed


class TestOneLine:
    @pytest.mark.parametrize("character", ["\n", "\r", "\r\n", *NOT_LINE_ENDS.values()])
    def test_every_line_end_becomes_a_space(self, character):
        assert one_line(f"a{character}b") == "a b"

    def test_other_characters_stay(self):
        text = " 나는\t밥을  먹었다 \u00a0\u3000\u200b🙂 "
        assert one_line(text) == text

    def test_a_lone_surrogate_is_replaced(self):
        assert one_line("a\ud800b\udfff") == "a?b?"

    @given(st.text(st.characters() | st.sampled_from("\n\r\x85\u2028\ud800")))
    def test_what_is_written_is_read_as_one_line(self, text):
        assert lines_of(f"{one_line(text)}\n".encode()) == [one_line(text)]


class TestWriting:
    def test_text_is_utf8_with_newlines_only(self, tmp_path):
        with open_output(tmp_path / "file.txt") as output:
            output.write("ä\n")
            output.write("\u2028b\n")
        assert (tmp_path / "file.txt").read_bytes() == "ä\n\u2028b\n".encode()

    def test_bytes_are_written_as_they_are(self, tmp_path):
        with atomic_write(tmp_path / "file.bin") as output:
            output.write(b"\x00\r\n\xff")
        assert (tmp_path / "file.bin").read_bytes() == b"\x00\r\n\xff"

    @pytest.mark.parametrize("path", [None, "-"])
    def test_standard_output_is_utf8_in_any_locale(self, path, monkeypatch):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", newline="\r\n"))
        with open_output(path) as output:
            output.write("ä\n")
        assert raw.getvalue() == "ä\n".encode()
        assert not sys.stdout.closed

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DataError])
    def test_old_content_stays_if_the_body_raises(self, write, error):
        path = write(b"old")
        with pytest.raises(error):
            write_and_raise(open_output(path), "new", error)
        assert path.read_bytes() == b"old"
        assert os.listdir(path.parent) == [path.name]

    def test_no_file_appears_if_the_body_raises(self, tmp_path):
        with pytest.raises(KeyError):
            write_and_raise(atomic_write(tmp_path / "file"), b"new", KeyError)
        assert os.listdir(tmp_path) == []

    def test_the_file_is_untouched_until_the_end(self, write):
        path = write(b"old")
        with atomic_write(path) as output:
            output.write(b"new")
            output.flush()
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert os.listdir(path.parent) == [path.name]

    def test_a_character_that_is_not_unicode_leaves_the_old_content(self, write):
        path = write(b"old")
        with pytest.raises(UnicodeEncodeError), open_output(path) as output:
            output.write("\ud800")
        assert path.read_bytes() == b"old"
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_permissions_follow_the_umask(self, tmp_path, umask, mask, mode):
        umask(mask)
        with open_output(tmp_path / "file"):
            pass
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode
        assert umask(mask) == mask

    def test_a_symbolic_link_is_written_through(self, write, tmp_path):
        path = write(b"old")
        (tmp_path / "folder").mkdir()
        link = tmp_path / "folder" / "link"
        link.symlink_to(path)
        with open_output(link) as output:
            output.write("new")
        assert link.is_symlink()
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path / "folder") == ["link"]

    def test_a_link_to_nothing_yet_creates_its_target(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "target")
        with open_output(tmp_path / "link") as output:
            output.write("new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_bytes() == b"new"

    def test_a_name_without_a_folder_is_in_the_current_one(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with open_output("file") as output:
            output.write("new")
        assert (tmp_path / "file").read_bytes() == b"new"


class TestWhatCannotBeWritten:
    def test_a_missing_folder_is_an_error(self, tmp_path):
        path = tmp_path / "absent" / "file"
        with pytest.raises(ConfigError) as caught, open_output(path):
            pass
        assert str(caught.value) == f"{path}: cannot be written: No such file or directory"

    def test_a_protected_folder_is_an_error(self, tmp_path):
        tmp_path.chmod(0o500)
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write everywhere")
        path = tmp_path / "file"
        with pytest.raises(ConfigError) as caught, open_output(path):
            pass
        assert str(caught.value) == f"{path}: cannot be written: Permission denied"

    def test_a_signal_right_after_the_file_was_made_leaves_none(self, tmp_path, monkeypatch):
        make = os.open

        def interrupted(*arguments):
            os.close(make(*arguments))
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "open", interrupted)
        with pytest.raises(KeyboardInterrupt), open_output(tmp_path / "file"):
            pass
        monkeypatch.undo()
        assert list(tmp_path.iterdir()) == []

    def test_a_read_only_disk_is_an_error(self, tmp_path, monkeypatch):
        def refuse(*arguments):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(ConfigError) as caught, open_output(tmp_path / "file"):
            pass
        assert str(caught.value) == (
            f"{tmp_path / 'file'}: cannot be written: Read-only file system"
        )

    def test_a_folder_is_an_error(self, tmp_path):
        with pytest.raises(ConfigError) as caught, open_output(tmp_path):
            pass
        assert str(caught.value) == f"{tmp_path}: is a folder, but must be a file"

    def test_a_full_disk_is_an_error_and_leaves_the_old_content(self, write, monkeypatch):
        def refuse(handle):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        path = write(b"old")
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(TrainingError) as caught, open_output(path) as output:
            output.write("new")
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
        assert path.read_bytes() == b"old"
        assert os.listdir(path.parent) == [path.name]

    def test_a_closed_pipe_stays_a_closed_pipe(self, write):
        path = write(b"old")
        with pytest.raises(BrokenPipeError), open_output(path):
            raise BrokenPipeError
        assert os.listdir(path.parent) == [path.name]


class TestDevicesAndPipes:
    def test_a_full_device_is_an_error(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(TrainingError) as caught, open_output(pipe):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.close(reader)
        assert str(caught.value) == f"{pipe}: cannot be written: No space left on device"
        assert pipe.is_fifo()

    def test_a_named_pipe_is_written_to_and_stays(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # so that nobody waits for a reader
        with open_output(pipe) as output:
            output.write("ä\n")
        assert os.read(reader, 100) == "ä\n".encode()
        os.close(reader)
        assert pipe.is_fifo()

    @pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="there is no /dev/fd")
    def test_a_pipe_without_a_name_of_its_own_is_written_to(self):
        read_end, write_end = os.pipe()
        with open_output(f"/dev/fd/{write_end}") as output:
            output.write("new")
        os.close(write_end)
        with open(read_end, "rb") as reader:
            assert reader.read() == b"new"

    def test_a_reader_that_is_gone_stays_a_closed_pipe(self):
        read_end, write_end = os.pipe()
        output = open_output(f"/dev/fd/{write_end}")
        output.__enter__().write("new")
        os.close(read_end)
        with pytest.raises(BrokenPipeError):
            output.__exit__(None, None, None)
        os.close(write_end)
