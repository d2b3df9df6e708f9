"""One file for each way to deliver: each is one `Publisher`."""
