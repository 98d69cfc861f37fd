"""Fault injection: whether what is promised about accepted requests holds, whatever is killed."""
