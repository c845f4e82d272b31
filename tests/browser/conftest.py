"""Registers the marker of this folder's tests."""


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: measures pages in headless Chromium; skipped where none is installed")
