//! What a domain has of engines: which one runs it, and its VM where that is KVM.
//!
//! Law: all vCPUs of a domain run on the same engine. It is changed only while
//! no vCPU is in the guest, and each vCPU takes the new one before it enters
//! again. A change to KVM always makes a new VM: it has no shadow of any page
//! table yet, so none can be older than the tables.

use super::{Engine, EngineError, EngineKind, KvmHost, SoftVcpu, kvm::KvmVm};
use crate::{
    emulate::CpuidPolicy, interp::GuestPhys, memory::MachineMemory, window::ForeignWindow,
};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// A domain's engines.
pub struct Engines {
    memory: Arc<MachineMemory>,
    cpuid: CpuidPolicy,
    current: Mutex<Current>,
    /// What others granted, once the domain maps some of it.
    window: OnceLock<Arc<ForeignWindow>>,
    /// Counts changes.
    generation: AtomicU64,
}

struct Current {
    /// The VM, where the engine is KVM.
    vm: Option<KvmVm>,
    /// vCPUs of the engine that were made before the change to it.
    ready: Vec<(u32, Engine)>,
}

/// What a domain changes over to.
pub struct Prepared(Current);

impl Engines {
    /// For a domain of which nothing has run yet. `kvm` is the engine, or else
    /// the domain is interpreted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(
        kvm: Option<&KvmHost>,
        memory: Arc<MachineMemory>,
        cpuid: CpuidPolicy,
    ) -> Result<Self, EngineError> {
        let vm = kvm.map(|kvm| KvmVm::new(&kvm.device, Arc::clone(&memory), &cpuid));
        Ok(Engines {
            current: Mutex::new(Current {
                vm: vm.transpose()?,
                ready: Vec::new(),
            }),
            memory,
            cpuid,
            window: OnceLock::new(),
            generation: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the domain reach a window, now and after each change of the engine.
    /// The first one stays.
    ///
    /// # Errors
    /// KVM refused.
    pub fn add_window(&self, window: &Arc<ForeignWindow>) -> Result<(), EngineError> {
        let current = self.lock();
        if let Some(vm) = &current.vm {
            vm.add_window(window)?;
        }
        let _ = self.window.set(Arc::clone(window));
        Ok(())
    }

    /// The engine in use.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        if self.lock().vm.is_some() {
            EngineKind::Kvm
        } else {
            EngineKind::Soft
        }
    }

    /// A number that changes with the engine.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// An engine for vCPU `id`, and the generation that it belongs to.
    ///
    /// # Errors
    /// KVM refused.
    pub fn create_vcpu(
        &self,
        id: u32,
        phys: &Arc<dyn GuestPhys>,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<(Engine, u64), EngineError> {
        let mut current = self.lock();
        let generation = self.generation();
        if let Some(at) = current.ready.iter().position(|(ready, _)| *ready == id) {
            return Ok((current.ready.swap_remove(at).1, generation));
        }
        let engine = make(current.vm.as_ref(), id, &self.cpuid, phys, interrupt)?;
        Ok((engine, generation))
    }

    /// Makes all that a change of the engine needs and that can fail: with a
    /// KVM, a VM with these vCPUs in it.
    ///
    /// # Errors
    /// KVM refused; nothing has changed.
    pub fn prepare(
        &self,
        kvm: Option<&KvmHost>,
        vcpus: impl Iterator<Item = (u32, Arc<AtomicBool>)>,
        phys: &Arc<dyn GuestPhys>,
    ) -> Result<Prepared, EngineError> {
        let vm = kvm
            .map(|kvm| KvmVm::new(&kvm.device, Arc::clone(&self.memory), &self.cpuid))
            .transpose()?;
        let ready = vcpus
            .map(|(id, interrupt)| {
                make(vm.as_ref(), id, &self.cpuid, phys, &interrupt).map(|engine| (id, engine))
            })
            .collect::<Result<_, _>>()?;
        if let (Some(vm), Some(window)) = (&vm, self.window.get()) {
            vm.add_window(window)?;
        }
        Ok(Prepared(Current { vm, ready }))
    }

    /// Changes over, while no vCPU is in the guest. The old VM goes with the
    /// last vCPU that lets go of it.
    pub fn change(&self, to: Prepared) {
        let mut current = self.lock();
        let old = std::mem::replace(&mut *current, to.0);
        // One that was made since the preparation.
        if let (Some(vm), Some(window)) = (&current.vm, self.window.get())
            && let Err(error) = vm.add_window(window)
        {
            tracing::error!(%error, "the new VM has no window for grants");
        }
        self.generation.fetch_add(1, Ordering::SeqCst);
        drop(current);
        drop(old);
    }
}

fn make(
    vm: Option<&KvmVm>,
    id: u32,
    cpuid: &CpuidPolicy,
    phys: &Arc<dyn GuestPhys>,
    interrupt: &Arc<AtomicBool>,
) -> Result<Engine, EngineError> {
    match vm {
        Some(vm) => vm.create_vcpu(id).map(Engine::Kvm),
        None => {
            let vcpu = SoftVcpu::new(Arc::clone(phys), cpuid.clone(), Arc::clone(interrupt));
            Ok(Engine::Soft(Box::new(vcpu)))
        }
    }
}
