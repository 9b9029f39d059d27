"""A certificate as a page that a person can read, pass on and check: HTML in one file, or Markdown. Floor 5.

`lipcert.pages.contents` says what is on it, once; `lipcert.pages.hypertext` and `lipcert.pages.markdown` write it down.
"""
