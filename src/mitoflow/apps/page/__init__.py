"""The page of `mitoflow app`: stacks go in, masks are looked at and corrected, and files are taken home.

`server` answers the browser, `results` keeps what was uploaded and predicted, `worker` predicts one stack after the
other, and `static` is what the browser runs: plain JavaScript, with nothing from other servers.
"""
