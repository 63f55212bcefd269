package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
)

// fsType is the type that /proc/mounts shows, after "fuse.".
const fsType = "sregistry-fs"

// intentLife is how long an open for writing that was answered ESTALE may take to
// come back through Lookup.
const intentLife = 5 * time.Second

// endGrace is how long the kernel may take to let go of a mount.
const endGrace = 2 * time.Second

// mount is the state that the nodes of one mount share.
type mount struct {
	opts        Options
	cache       *cache.Cache
	log         *slog.Logger
	started     time.Time
	passthrough bool

	life context.Context // ends with the mount
	end  context.CancelFunc

	stopping atomic.Bool
	handles  atomic.Int64
	inos     atomic.Uint64

	mu      sync.Mutex // guards what follows; nothing is called with it held
	images  map[backends.Ref]*imageNode
	local   map[fileKey]*stageNode // what only this mount has, by name
	staged  map[*stageNode]bool    // every node with a staged file
	intents map[intent]*replacement
}

type fileKey struct{ collection, name string }

// intent is a thread's wish to replace an image.
type intent struct {
	pid uint32
	ref backends.Ref
}

// replacement is the file that an intent will write, once it was looked up.
type replacement struct {
	since time.Time
	node  *stageNode
}

// Mounted is a mount in use. Its methods are safe for concurrent use.
type Mounted struct {
	m          *mount
	server     *fuse.Server
	mountpoint string
	device     uint64        // of the mount: the number of its connection
	served     chan struct{} // closed when the kernel has let go
}

// Mount shows c at mountpoint, an existing empty directory, and returns once
// file operations work there. The cache stays the caller's to close, after
// Done. As root it mounts by itself, else through fusermount3.
func Mount(ctx context.Context, mountpoint string, c *cache.Cache, o Options) (*Mounted, error) {
	o = o.withDefaults(c.CanPush())
	m := &mount{
		opts: o, cache: c, log: o.Log, started: o.Now(),
		passthrough: os.Geteuid() == 0,
		images:      map[backends.Ref]*imageNode{}, local: map[fileKey]*stageNode{}, staged: map[*stageNode]bool{}, intents: map[intent]*replacement{},
	}
	m.life, m.end = context.WithCancel(context.WithoutCancel(ctx))
	opts := &fusefs.Options{
		MountOptions: m.fuseOptions(),
		UID:          o.UID, GID: o.GID,
		RootStableAttr: &fusefs.StableAttr{Ino: 1},
	}
	raw := fusefs.NewNodeFS(&collectionNode{m: m}, opts)
	if o.AllowRoot {
		raw = onlyFor(raw, uint32(os.Geteuid()), 0)
	}
	server, err := newServer(raw, mountpoint, &opts.MountOptions)
	if err != nil {
		m.end()
		return nil, mountError(mountpoint, err)
	}
	mounted := &Mounted{m: m, server: server, mountpoint: mountpoint, served: make(chan struct{})}
	go func() {
		defer close(mounted.served)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		m.end()
		return nil, errors.Join(mountError(mountpoint, err), server.Unmount())
	}
	// Learned now, while the mount answers: Force must not ask a mount that hangs.
	var st unix.Stat_t
	if err := unix.Stat(mountpoint, &st); err == nil {
		mounted.device = st.Dev
	}
	return mounted, nil
}

// newServer mounts. A child process must never inherit the connection: it would
// stay open after this process has died, and a child that waits for the mount
// would then wait for itself.
func newServer(raw fuse.RawFileSystem, mountpoint string, o *fuse.MountOptions) (*fuse.Server, error) {
	if o.DirectMount {
		// Mounting directly forks nothing, and the descriptor has no
		// close-on-exec flag from the start.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	server, err := fuse.NewServer(raw, mountpoint, o)
	fds, readErr := os.ReadDir("/proc/self/fd")
	if readErr != nil {
		return server, err
	}
	for _, entry := range fds {
		if target, _ := os.Readlink("/proc/self/fd/" + entry.Name()); target == "/dev/fuse" {
			if fd, convErr := strconv.Atoi(entry.Name()); convErr == nil {
				unix.CloseOnExec(fd)
			}
		}
	}
	return server, err
}

func (m *mount) fuseOptions() fuse.MountOptions {
	o := m.opts
	root := os.Geteuid() == 0
	mo := fuse.MountOptions{
		FsName: o.Source, Name: fsType,
		AllowOther: o.AllowOther || o.AllowRoot,
		// The kernel checks modes itself: without that, allow_other lets
		// everybody read a file of mode 0600.
		Options:              []string{"default_permissions"},
		DirectMount:          root,
		DirectMountStrict:    root, // no fallback that forks: see newServer
		DirectMountFlags:     syscall.MS_NOSUID | syscall.MS_NODEV,
		MaxWrite:             1 << 20,
		IgnoreSecurityLabels: true,
		Debug:                o.FuseDebug,
		Logger:               slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	if !root {
		mo.Options = append(mo.Options, "nosuid", "nodev")
	}
	if o.ReadOnly {
		mo.Options = append(mo.Options, "ro")
		mo.DirectMountFlags |= syscall.MS_RDONLY
	}
	return mo
}

func mountError(mountpoint string, err error) error {
	e := &backends.Error{Op: "mount", Kind: backends.Other, Err: fmt.Errorf("%s: %w", mountpoint, err)}
	var missing *exec.Error
	switch {
	case errors.As(err, &missing), strings.Contains(err.Error(), "fusermount"):
		e.Hint = "mounting without root needs fusermount3 (install fuse3) and an accessible /dev/fuse"
	case errors.Is(err, os.ErrPermission):
		e.Hint = "is /dev/fuse accessible, and may this user mount?"
	case errors.Is(err, os.ErrNotExist):
		e.Hint = "is the fuse module loaded (modprobe fuse) and is there a /dev/fuse?"
	}
	return e
}

// Done is closed when the mount is gone, whoever unmounted it.
func (m *Mounted) Done() <-chan struct{} { return m.served }

// OpenHandles gives how many files are open.
func (m *Mounted) OpenHandles() int { return int(m.m.handles.Load()) }

// Unmount takes the mount down: from here on nothing is opened any more; files being
// written have StopTimeout, or until ctx ends, to finish; what is then left stays
// staged. A mount that is still in use after that is detached, so that
// this always ends. It returns what could not be pushed as an error.
func (m *Mounted) Unmount(ctx context.Context) error {
	m.m.stopping.Store(true)
	ctx, cancel := context.WithTimeout(ctx, m.m.opts.StopTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for m.m.beingWritten() > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-m.served:
			return m.finish(nil)
		case <-tick.C:
		}
	}
	var err error
	for {
		if err = m.server.Unmount(); err == nil {
			break
		}
		select {
		case <-tick.C:
			continue
		case <-m.served:
			return m.finish(nil)
		case <-ctx.Done():
		}
		err = m.detach()
		break
	}
	if err != nil {
		return m.finish(fmt.Errorf("unmount %s: %w", m.mountpoint, err))
	}
	return m.finish(m.awaitEnd())
}

// awaitEnd waits for the kernel to let go of a mount that was unmounted.
// What still uses it is cut off, as far as this user may; the rest ends
// with this process.
func (m *Mounted) awaitEnd() error {
	for _, cut := range []func(){func() {}, m.abort} {
		cut()
		select {
		case <-m.served:
			return nil
		case <-time.After(endGrace):
		}
	}
	return fmt.Errorf("unmount %s: a process still uses the mount; it is cut off when this program ends", m.mountpoint)
}

// Force takes the mount down now: the connection is aborted, so that every
// waiting process gets an error, and the mount is detached.
func (m *Mounted) Force() error {
	m.m.stopping.Store(true)
	m.m.end()
	m.abort()
	err := m.detach()
	if ended := m.awaitEnd(); ended != nil {
		return m.finish(errors.Join(err, ended))
	}
	return m.finish(nil) // detach may have come too late: an unmount was under way
}

// detach takes the mount out of the tree while it is in use.
func (m *Mounted) detach() error {
	if os.Geteuid() == 0 {
		return unix.Unmount(m.mountpoint, unix.MNT_DETACH)
	}
	out, err := exec.Command("fusermount3", "-u", "-z", "--", m.mountpoint).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// abort cuts the connection to the kernel through fusectl, where this user
// may.
func (m *Mounted) abort() {
	path := "/sys/fs/fuse/connections/" + strconv.FormatUint(uint64(unix.Minor(m.device)), 10) + "/abort"
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		m.m.log.Debug("the connection was not aborted", "error", err)
	}
}

// finish ends what the mount was waiting for and settles its local files.
func (m *Mounted) finish(err error) error {
	m.m.end()
	m.m.mu.Lock()
	left := slices.Collect(maps.Keys(m.m.staged))
	m.m.mu.Unlock()
	for _, n := range left {
		n.release()
	}
	return err
}

// release closes the staged file of a mount that ended; the bytes stay.
func (n *stageNode) release() {
	n.mu.Lock()
	staged := n.staged
	n.staged = nil
	unsaid := n.isImage() && n.changed > 0 && n.published == nil
	ref := n.ref
	n.mu.Unlock()
	if staged == nil {
		return
	}
	if unsaid {
		n.m.log.Warn("not pushed before the unmount; the bytes stay in the stage", "image", ref.String(), "staged", staged.Path())
	}
	if err := staged.Close(); err != nil {
		n.m.log.Warn("the stage could not be tidied", "image", ref.String(), "error", err)
	}
}

func (m *mount) now() time.Time  { return m.opts.Now() }
func (m *mount) closing() bool   { return m.stopping.Load() }
func (m *mount) opened(by int64) { m.handles.Add(by) }

// stageIno gives numbers no image has: the top bit is set.
func (m *mount) stageIno() uint64 { return 1<<63 | m.inos.Add(1) }

// beingWritten counts files that a process writes or that are being pushed.
func (m *mount) beingWritten() int {
	m.mu.Lock()
	all := slices.Collect(maps.Keys(m.staged))
	m.mu.Unlock()
	busy := 0
	for _, n := range all {
		n.mu.Lock()
		if n.writers > 0 || n.pushing {
			busy++
		}
		n.mu.Unlock()
	}
	return busy
}

func (m *mount) track(n *stageNode, staged bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if staged {
		m.staged[n] = true
	} else {
		delete(m.staged, n)
	}
}

func (m *mount) addLocal(n *stageNode) {
	n.mu.Lock()
	key := fileKey{n.collection, n.name}
	n.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.local[key] = n
}

func (m *mount) removeLocal(n *stageNode) {
	n.mu.Lock()
	key := fileKey{n.collection, n.name}
	n.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.local[key] == n {
		delete(m.local, key)
	}
}

func (m *mount) localFile(collection, name string) *stageNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.local[fileKey{collection, name}]
}

func (m *mount) localFiles(collection string) map[string]*stageNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := map[string]*stageNode{}
	for key, n := range m.local {
		if key.collection == collection {
			found[key.name] = n
		}
	}
	return found
}

// intend notes that the calling thread was sent away with ESTALE to look the
// name of ref up again and get a stage file for it.
func (m *mount) intend(ctx context.Context, ref backends.Ref) {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return
	}
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, r := range m.intents {
		if now.Sub(r.since) > intentLife {
			delete(m.intents, key)
		}
	}
	m.intents[intent{caller.Pid, ref}] = &replacement{since: now}
}

// replacementFor gives the file with which the calling thread intends to
// replace ref, or nil. The kernel asks twice: to see that its entry is no longer
// valid, and for the new one. Both have to get the same file, and the
// intent ends when that is opened.
func (m *mount) replacementFor(ctx context.Context, ref backends.Ref, make func() *stageNode) *stageNode {
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.intents[intent{caller.Pid, ref}]
	if r == nil || m.now().Sub(r.since) > intentLife {
		return nil
	}
	if r.node == nil {
		r.node = make()
	}
	return r.node
}

// fulfil ends the intent that n was made for.
func (m *mount) fulfil(n *stageNode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, r := range m.intents {
		if r.node == n {
			delete(m.intents, key)
		}
	}
}
