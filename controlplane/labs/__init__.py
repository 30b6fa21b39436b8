"""Labs: real servers on one machine for tests and demos; never part of an installation."""
