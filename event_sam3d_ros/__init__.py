"""3D objects from event cameras and blurry RGB frames, on robots.

The generated ROS messages (``event_sam3d_ros.msg``) live in the installed half of this package; extending the path
lets the source tree and that half be imported together.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"
