"""A teacher's server for tests."""

import threading

import uvicorn
from student_shop import ITEMS, FakeTeacher

from distill.runtime.listening import listen
from distill.teachers.server import create_app


class TeacherServer:
    """`FakeTeacher` behind a server in a thread."""

    def __init__(self, facts, port=0):
        self.listener = listen("127.0.0.1", port)
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(create_app(FakeTeacher(), facts, ITEMS), log_level="error"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    def stop(self):
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
