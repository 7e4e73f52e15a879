// What MicroPython asks of a port about its hardware: nothing, here.
