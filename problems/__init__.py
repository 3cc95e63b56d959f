"""Problems to train and to control; each module that defines ``problem`` is one."""
