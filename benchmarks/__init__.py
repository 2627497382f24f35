"""What waiting for flow runs costs and how late its news is, measured beside what others do; `make bench` runs it.

It judges nothing and no test runs it: targets stand beside the figures, for a person to compare.
"""
