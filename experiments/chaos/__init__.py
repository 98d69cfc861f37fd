"""Faults by the dozen: what is promised about accepted requests, whatever is killed, as figures."""
