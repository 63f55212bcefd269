package cache

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

// ScratchLife is how long scratch that nobody holds is kept.
const ScratchLife = 24 * time.Hour

// The files of one staged entry, in stage/<id>/.
const (
	stageData    = "data"
	stageJournal = "journal.json"
	stageLock    = "lock"
)

// ErrStagedInUse says that another handle, perhaps of another process, holds
// the staged file.
var ErrStagedInUse = errors.New("the staged file is in use by another process")

// StageOptions says where and for which registry bytes are staged.
type StageOptions struct {
	Dir      string           // the cache directory; made with mode 0700 if absent
	Registry string           // identity written into journals; holds no credential
	Log      *slog.Logger     // never nil
	Now      func() time.Time // never nil
}

// Stage keeps the bytes that are on their way to a registry: one directory
// Dir/stage/<id> each, holding the bytes, a lock and a journal that says what they
// are. The file system is the whole truth (no index takes part), so entries
// outlive crashes and any process that uses the same cache directory sees
// them. A held lock, which ends with its process, tells live entries from
// left ones. Safe for concurrent use.
type Stage struct {
	opt  StageOptions
	root *os.Root // Dir/stage
}

// NewStage opens Dir/stage, makes it if need be, and drops scratch that was
// left for longer than ScratchLife. A directory that another user owns, or
// a symbolic link in its place, is refused. The caller closes it.
func NewStage(opt StageOptions) (*Stage, error) {
	fail := func(err error) (*Stage, error) {
		return nil, &backends.Error{Op: "stage", Kind: backends.KindOf(err), Err: err, Hint: "choose another directory with --cache-dir"}
	}
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return fail(err)
	}
	if err := checkOwned(opt.Dir, os.Stat); err != nil {
		return fail(err)
	}
	dir := filepath.Join(opt.Dir, "stage")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, iofs.ErrExist) {
		return fail(err)
	}
	if err := checkOwned(dir, os.Lstat); err != nil {
		return fail(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fail(err)
	}
	s := &Stage{opt: opt, root: root}
	s.Sweep()
	return s, nil
}

// checkOwned returns nil if path is a directory of this user.
func checkOwned(path string, stat func(string) (os.FileInfo, error)) error {
	info, err := stat(path)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok {
		return fmt.Errorf("%s is not a directory", path)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: %w", path, st.Uid, iofs.ErrPermission)
	}
	return nil
}

// Close releases the directory. Staged files that are open stay usable.
func (s *Stage) Close() error { return s.root.Close() }

// Create stages a new, empty file. name is set for scratch, whose ref is
// zero; otherwise ref is what the bytes will become. The caller closes it. A
// failure passes the local errno through (ENOSPC, EDQUOT, EROFS, …).
func (s *Stage) Create(name string, ref backends.Ref) (*Staged, error) {
	var random [6]byte
	rand.Read(random[:]) // never fails
	now := s.opt.Now().UTC()
	id := now.Format("20060102T150405") + "-" + hex.EncodeToString(random[:])
	fail := func(err error) (*Staged, error) {
		return nil, &backends.Error{Op: "stage", Ref: ref, Kind: backends.KindOf(err), Err: err}
	}
	if name == "" {
		if err := checkImage(ref); err != nil {
			return nil, err
		}
	}
	if err := s.root.Mkdir(id, 0o700); err != nil {
		return fail(err)
	}
	f, err := s.open(id, os.O_CREATE|os.O_EXCL)
	if err == nil {
		f.journal = journal{Registry: s.opt.Registry, Ref: refJSON(ref), Name: name, State: StageWriting, Created: now}
		if err = f.writeJournal(false); err != nil {
			f.Close()
		}
	}
	if err != nil {
		s.root.RemoveAll(id)
		return fail(err)
	}
	return f, nil
}

// Open takes over a staged file that was left, for another try at pushing
// it or to drop it. NotFound if there is none of this id, ErrStagedInUse while
// another handle holds it. If its journal cannot be read, both Ref and Name are
// empty until SetRef. The caller closes it.
func (s *Stage) Open(id string) (*Staged, error) {
	fail := func(kind backends.Kind, err error) (*Staged, error) {
		return nil, &backends.Error{Op: "stage", Kind: kind, Err: fmt.Errorf("%q: %w", id, err)}
	}
	if !isStageID(id) {
		return fail(backends.NotFound, iofs.ErrNotExist)
	}
	f, err := s.open(id, 0)
	switch {
	case errors.Is(err, iofs.ErrNotExist):
		return fail(backends.NotFound, err)
	case err != nil:
		return fail(backends.Other, err)
	}
	if f.journal, err = readJournal(f.root); err != nil {
		s.opt.Log.Warn("a staged file's journal cannot be read", "id", id, "error", err)
		f.journal = journal{Registry: s.opt.Registry, State: StageWriting, Created: s.opt.Now().UTC()}
	}
	return f, nil
}

// open locks stage/<id> and opens its bytes; flag may add O_CREATE|O_EXCL.
func (s *Stage) open(id string, flag int) (*Staged, error) {
	f := &Staged{stage: s, id: id, freezing: make(chan struct{}, 1)}
	if err := f.openFiles(flag); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Staged) openFiles(flag int) (err error) {
	if f.root, err = f.stage.root.OpenRoot(f.id); err != nil {
		return err
	}
	if f.lock, err = f.root.OpenFile(stageLock, os.O_RDWR|flag, 0o600); err != nil {
		return err
	}
	if err = tryLock(f.lock); err != nil {
		return err
	}
	if f.file, err = f.root.OpenFile(stageData, os.O_RDWR|flag, 0o600); err != nil {
		return err
	}
	info, err := f.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("staged data is no regular file")
	}
	f.size = info.Size()
	return nil
}

// StagedInfo describes a staged entry, of this or any other process.
type StagedInfo struct {
	ID       string
	Path     string          // of the bytes, for people
	Registry string          // StageOptions.Registry of the mount that staged it
	Ref      backends.Ref    // zero for scratch
	Name     string          // of scratch; empty for an image
	State    StageState      // StageDamaged if the journal cannot be read
	Reason   string          // why it could not be pushed, when State is StageFailed
	Created  time.Time       // UTC
	Updated  time.Time       // of the last change of bytes or journal, UTC
	Size     int64           // bytes
	Blocks   int64           // allocated, in 512-byte units
	Digest   backends.Digest // SHA-256 as of the last freeze; zero if not frozen since the last write
	PID      int             // of the last process that wrote the journal
	Live     bool            // some process holds it now
}

// List tells every staged entry, oldest first. An entry that vanishes
// meanwhile is left out.
func (s *Stage) List() ([]StagedInfo, error) {
	dir, err := s.root.Open(".")
	if err != nil {
		return nil, &backends.Error{Op: "stage", Err: err}
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return nil, &backends.Error{Op: "stage", Err: err}
	}
	slices.Sort(names)
	var all []StagedInfo
	for _, id := range names {
		if info, ok := s.info(id); ok {
			all = append(all, info)
		}
	}
	return all, nil
}

func (s *Stage) info(id string) (StagedInfo, bool) {
	if !isStageID(id) {
		return StagedInfo{}, false
	}
	root, err := s.root.OpenRoot(id)
	if err != nil {
		return StagedInfo{}, false
	}
	defer root.Close()
	data, err := root.Lstat(stageData)
	if err != nil || !data.Mode().IsRegular() {
		return StagedInfo{}, false
	}
	info := StagedInfo{
		ID: id, Path: filepath.Join(s.root.Name(), id, stageData), Size: data.Size(),
		Updated: data.ModTime().UTC(), State: StageDamaged,
	}
	if st, ok := data.Sys().(*syscall.Stat_t); ok {
		info.Blocks = st.Blocks
	}
	if lock, err := root.OpenFile(stageLock, os.O_RDWR, 0); err == nil {
		info.Live = isLocked(lock)
		lock.Close()
	}
	j, err := readJournal(root)
	if err != nil {
		info.Reason = "its journal cannot be read"
		info.Created = info.Updated
		return info, true
	}
	info.Registry, info.Ref, info.Name, info.State = j.Registry, backends.Ref(j.Ref), j.Name, j.State
	info.Reason, info.Created, info.Digest, info.PID = j.Reason, j.Created, j.digest(), j.PID
	if j.Updated.After(info.Updated) {
		info.Updated = j.Updated
	}
	return info, true
}

// Sweep drops scratch without an owner whose last change is older than
// ScratchLife, and what a crash during Create or Drop left without bytes.
// Images are never swept, nor bytes whose journal cannot be read.
func (s *Stage) Sweep() {
	dir, err := s.root.Open(".")
	if err != nil {
		return
	}
	names, _ := dir.Readdirnames(-1)
	dir.Close()
	for _, id := range names {
		if isStageID(id) {
			s.sweep(id)
		}
	}
}

func (s *Stage) sweep(id string) {
	oldest := s.opt.Now().Add(-ScratchLife)
	info, ok := s.info(id)
	if ok && (info.Live || info.Name == "" && (info.Size > 0 || info.State != StageDamaged) || info.Updated.After(oldest)) {
		return
	}
	if !ok { // no bytes: perhaps being created right now
		if dir, err := s.root.Lstat(id); err != nil || !dir.IsDir() || dir.ModTime().After(oldest) {
			return
		}
	}
	if lock, err := s.root.OpenFile(filepath.Join(id, stageLock), os.O_RDWR, 0); err == nil {
		defer lock.Close() // holds the lock while removing
		if tryLock(lock) != nil {
			return
		}
	}
	if err := s.remove(id); err != nil {
		s.opt.Log.Warn("staged scratch could not be dropped", "id", id, "error", err)
	}
}

// remove deletes an entry: the bytes first, so that what a crash leaves is
// recognised as dropped.
func (s *Stage) remove(id string) error {
	err := s.root.Remove(filepath.Join(id, stageData))
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return s.root.RemoveAll(id)
}

// isStageID accepts the names that Create makes, and so keeps a path from
// the command line inside the stage.
func isStageID(id string) bool {
	return len(id) == len("20060102T150405-0123456789ab") && strings.Trim(id, "0123456789abcdefT-") == ""
}

// tryLock takes f's lock or returns ErrStagedInUse. The lock belongs to the
// open file, so that two handles of one process exclude each other too, and
// ends when the file is closed or the process dies.
func tryLock(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: 0, Len: 0}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return ErrStagedInUse
	}
	return err
}

// isLocked reports whether another open file holds f's lock, without
// ever taking it: a listing never gets in an owner's way.
func isLocked(f *os.File) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: 0, Len: 0}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l)
	return err == nil && l.Type != unix.F_UNLCK
}
