"""Which OpenGL MuJoCo renders with: `import mujoco` reads it from MUJOCO_GL, and fails if its libraries are missing."""

import ctypes
import importlib
import os
import sys

EGL_LIBRARIES = (("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1"))  # one of each group is needed
OSMESA_LIBRARIES = (("libOSMesa.so.8", "libOSMesa.so.6"),)
SOFTWARE_RENDERERS = ("llvmpipe", "softpipe", "swrast", "osmesa", "software rasterizer")


def choose_backend() -> str | None:
    """Set MUJOCO_GL to what this machine has, unless the user chose; returns what MuJoCo is told, None for nothing."""
    chosen = os.environ.get("MUJOCO_GL", "").strip()
    if chosen or sys.platform in ("darwin", "win32"):
        return chosen or None
    for backend, libraries in (("egl", EGL_LIBRARIES), ("osmesa", OSMESA_LIBRARIES)):
        if all(any(_loads(name) for name in alternatives) for alternatives in libraries):
            os.environ["MUJOCO_GL"] = backend
            _tell_mujoco()
            return backend
    return None


def renderer_name() -> str:
    """What draws the pictures, in the driver's own words, for example `llvmpipe (LLVM 15.0.6, 256 bits)`.

    Raises:
        RuntimeError: OpenGL gives no context, or one without a name.
    """
    from mujoco.gl_context import GLContext
    from OpenGL.GL import GL_RENDERER, glGetString

    context = GLContext(16, 16)
    try:
        context.make_current()
        name = glGetString(GL_RENDERER)
    finally:
        context.free()
    if name is None:
        raise RuntimeError("OpenGL does not name its renderer")
    return name.decode(errors="replace")


def is_software(name: str) -> bool:
    """Whether a renderer of this name draws on the CPU."""
    return any(software in name.lower() for software in SOFTWARE_RENDERERS)


def one_render_thread() -> None:
    """Let Mesa's software renderer use one thread per process, unless the user chose: for many processes at once."""
    os.environ.setdefault("LP_NUM_THREADS", "1")


def _tell_mujoco() -> None:
    """Let a MuJoCo that was imported before this package read MUJOCO_GL again (PyOpenGL, once loaded, cannot)."""
    if "OpenGL" in sys.modules:
        return
    for module in ("mujoco.rendering.classic.gl_context", "mujoco.gl_context"):  # 4.x has both, 3.x the second
        if module in sys.modules:
            importlib.reload(sys.modules[module])


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
