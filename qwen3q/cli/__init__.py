"""One file per verb: parse, call one library function, print."""
