package fs

import (
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// onlyFor answers EACCES to everybody but the given users, in every
// operation that takes a name or opens something. It is allow_root: the
// kernel has only allow_other, and libfuse's allow_root is such a check too.
// What an allowed process has open, it may pass on.
func onlyFor(raw fuse.RawFileSystem, uids ...uint32) fuse.RawFileSystem {
	return &restricted{RawFileSystem: raw, uids: uids}
}

type restricted struct {
	fuse.RawFileSystem
	uids []uint32
}

func (r *restricted) allows(c fuse.Caller) bool { return slices.Contains(r.uids, c.Uid) }

func (r *restricted) Lookup(cancel <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !r.allows(header.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Lookup(cancel, header, name, out)
}

func (r *restricted) GetAttr(cancel <-chan struct{}, input *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.GetAttr(cancel, input, out)
}

func (r *restricted) SetAttr(cancel <-chan struct{}, input *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.SetAttr(cancel, input, out)
}

func (r *restricted) Mknod(cancel <-chan struct{}, input *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Mknod(cancel, input, name, out)
}

func (r *restricted) Mkdir(cancel <-chan struct{}, input *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Mkdir(cancel, input, name, out)
}

func (r *restricted) Unlink(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	if !r.allows(header.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Unlink(cancel, header, name)
}

func (r *restricted) Rmdir(cancel <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	if !r.allows(header.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Rmdir(cancel, header, name)
}

func (r *restricted) Rename(cancel <-chan struct{}, input *fuse.RenameIn, oldName string, newName string) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Rename(cancel, input, oldName, newName)
}

func (r *restricted) Access(cancel <-chan struct{}, input *fuse.AccessIn) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Access(cancel, input)
}

func (r *restricted) GetXAttr(cancel <-chan struct{}, header *fuse.InHeader, attr string, dest []byte) (uint32, fuse.Status) {
	if !r.allows(header.Caller) {
		return 0, fuse.EACCES
	}
	return r.RawFileSystem.GetXAttr(cancel, header, attr, dest)
}

func (r *restricted) ListXAttr(cancel <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if !r.allows(header.Caller) {
		return 0, fuse.EACCES
	}
	return r.RawFileSystem.ListXAttr(cancel, header, dest)
}

func (r *restricted) SetXAttr(cancel <-chan struct{}, input *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.SetXAttr(cancel, input, attr, data)
}

func (r *restricted) RemoveXAttr(cancel <-chan struct{}, header *fuse.InHeader, attr string) fuse.Status {
	if !r.allows(header.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.RemoveXAttr(cancel, header, attr)
}

func (r *restricted) Create(cancel <-chan struct{}, input *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Create(cancel, input, name, out)
}

func (r *restricted) Open(cancel <-chan struct{}, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Open(cancel, input, out)
}

func (r *restricted) OpenDir(cancel <-chan struct{}, input *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.OpenDir(cancel, input, out)
}

func (r *restricted) ReadDir(cancel <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.ReadDir(cancel, input, out)
}

func (r *restricted) ReadDirPlus(cancel <-chan struct{}, input *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.ReadDirPlus(cancel, input, out)
}

func (r *restricted) StatFs(cancel <-chan struct{}, input *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.StatFs(cancel, input, out)
}

func (r *restricted) Statx(cancel <-chan struct{}, input *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if !r.allows(input.Caller) {
		return fuse.EACCES
	}
	return r.RawFileSystem.Statx(cancel, input, out)
}
