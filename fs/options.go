package fs

import (
	"log/slog"
	"os"
	"time"
)

// Options say how a mount looks and behaves. The zero value of a field is the
// default that its comment names.
type Options struct {
	Backend  string      // client name for records: "registry", "dir", …
	Source   string      // what /proc/mounts shows as the device; no credentials
	UID, GID uint32      // owner of every file
	FileMode os.FileMode // of images; 0: 0644, or 0444 where nothing can be pushed
	DirMode  os.FileMode // of directories; 0: 0755, or 0555 likewise
	ReadOnly bool        // refuse every change, whatever the backend can do

	AllowOther bool // other users too; forces the kernel's permission checks
	AllowRoot  bool // root too, besides the user who mounts
	AnyFile    bool // push files that are no image as well

	// StopTimeout bounds how long Unmount waits for files that are being
	// written; 0: 60 s.
	StopTimeout time.Duration

	// FuseDebug writes every FUSE request to stderr, names and attribute values included.
	FuseDebug bool

	Log *slog.Logger     // nil: discard
	Now func() time.Time // nil: the system's clock
}

func (o Options) withDefaults(canPush bool) Options {
	if !canPush {
		o.ReadOnly = true
	}
	if o.FileMode == 0 {
		o.FileMode = 0o644
		if o.ReadOnly {
			o.FileMode = 0o444
		}
	}
	if o.DirMode == 0 {
		o.DirMode = 0o755
		if o.ReadOnly {
			o.DirMode = 0o555
		}
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}
