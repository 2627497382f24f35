"""Two more services, of shapes that differ from those of the brewery."""
