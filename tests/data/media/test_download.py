import http.server
import socket
import threading
import time
from pathlib import Path

import pytest

from harness.data.media.download import fetch
from harness.data.media.reference import MediaPolicy, image_reference
from harness.data.row_error import RowError
from harness.errors import UserError

# Where a server does not answer in time, urllib leaves its socket to the garbage collector, which says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/gone":
            self.send_error(404)
        elif self.path == "/file":
            self._send(b"", 302, Location="file:///etc/hostname")
        elif self.path == "/moved":
            self._send(b"", 302, Location="/content")
        elif self.path == "/short":
            self._send(self.server.content, **{"Content-Length": str(len(self.server.content) + 9)})
        elif self.path == "/slow":
            time.sleep(0.5)
        elif self.path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b"x")
                time.sleep(0.05)
        else:
            self._send(self.server.content)

    def _send(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(picture, encoded, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.handle_error = lambda *args: None  # a client that hangs up is part of these tests
    server.asked, server.content = [], encoded(picture(30, 20), "PNG")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_is_downloaded_once(server, tmp_path):
    policy = MediaPolicy(tmp_path, root=tmp_path / "elsewhere", cache=tmp_path / "cache")
    for entry in (f"{server.url}/content", {"url": f"{server.url}/content"}, {"path": f"{server.url}/content"}):
        assert image_reference(entry, "f:7", policy).probe() == (20, 30)
    assert server.asked == ["/content"]
    assert len(list((tmp_path / "cache" / "download").iterdir())) == 1
    image_reference(f"{server.url}/content?other", "f:7", policy)
    assert len(server.asked) == 2


def test_a_redirection_is_followed_to_http_alone(server, tmp_path):
    path = fetch(f"{server.url}/moved", tmp_path, "f:7")
    assert Path(path).read_bytes() == server.content
    with pytest.raises(RowError, match=r"can not be downloaded .*file:///etc/hostname"):
        fetch(f"{server.url}/file", tmp_path, "f:7")


@pytest.mark.parametrize(
    ("path", "limits", "match"),
    [
        ("/gone", {}, r"f:7: 'http://127.*/gone' can not be downloaded \(HTTP Error 404.*; download it yourself"),
        ("/short", {}, "the server broke off 9 bytes before the end"),
        ("/slow", {"timeout_s": 0.1}, "timed out"),
        ("/drip", {"deadline_s": 0.2}, "not whole after 0.2 s"),
    ],
)
def test_a_server_that_does_not_deliver_is_unreachable(server, tmp_path, path, limits, match):
    with pytest.raises(RowError, match=match) as caught:
        fetch(server.url + path, tmp_path, "f:7", **limits)
    assert caught.value.reason == "unreachable url"
    assert list(tmp_path.iterdir()) == []


def test_a_closed_port_is_unreachable(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RowError, match=r"can not be downloaded \(.*refused.*; download it yourself") as caught:
        fetch(f"http://127.0.0.1:{port}/p.png", tmp_path, "f:7")
    assert caught.value.reason == "unreachable url"


@pytest.mark.parametrize("url", ["http://", "http://a b/c", "https://[::1", "http://127.0.0.1:99999/x"])
def test_a_malformed_address_is_unreachable(tmp_path, url):
    with pytest.raises(RowError, match="can not be downloaded"):
        fetch(url, tmp_path, "f:7")


def test_a_file_over_the_limit_is_given_up(server, tmp_path):
    with pytest.raises(RowError, match="is over 100 bytes; download it yourself") as caught:
        fetch(f"{server.url}/content", tmp_path, "f:7", max_bytes=100)
    assert caught.value.reason == "too large"
    assert list(tmp_path.iterdir()) == []


def test_threads_that_fetch_the_same_address_all_get_the_whole_file(server, tmp_path):
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(fetch(f"{server.url}/content", tmp_path, "f:7"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8 and len(set(paths)) == 1
    assert Path(paths[0]).read_bytes() == server.content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*downloads can not be written there"):
        fetch("http://127.0.0.1/x", tmp_path / "file", "f:7")
