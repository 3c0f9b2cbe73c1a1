"""The timings behind the README's figures: ``make bench``. Not part of the tests."""
