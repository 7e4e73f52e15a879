// qstrs that no source file of this port names: none.
