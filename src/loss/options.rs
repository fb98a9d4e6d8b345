//! Rows whose targets or options ask for more than a class: shares of all classes (probabilities, label smoothing), a teacher, or a
//! multiple of lse², by the same kernels as classes alone, in the same three ways: staged, in strips where they lie, and long ones one
//! by one.
//!
//! Exponentials are relative to the target's logit where f64 is far more than the type that computes, else, and where there is no
//! target class, to the largest: so no term of the loss is a difference of larger ones.

use std::ops::Range;

use fearless_simd::Simd;

use super::Found;
use super::listed::Batch;
use super::plan::{Goal, Plan, RowGradients, Teacher, divide, lanes_of};
use super::rows::{Rows, add_by_row, scales};
use super::ways::{bring_in_all, strip_mut_of, strip_of, tiles_of};
use crate::dtype::Dtype;
use crate::element::Element;
use crate::kernel::finish::{self, Asked, Coefficients, MOST_LANES, Own, PerLane, Sums};
use crate::kernel::horizontal::{self, Gradient, Less, Weight};
use crate::kernel::shares::{self, Aim, CappedTiles, Given, Leader, Shares, Weighed};
use crate::kernel::stage::Stage;
use crate::kernel::vertical::{self, Block, Strip, StripMut, Tiles};
use crate::math::{Real, two_sum};
use crate::row::product;

/// What some tiles are to be like, in memory.
enum Likeness<'a, R> {
    Given(Given<'a>),
    Teacher(Strip<'a, R>),
}

/// What is known of some tiles.
struct Known<S: Simd, R: Real> {
    own: Tiles<Own>,
    rows: Tiles<vertical::Rows<S, R>>,
    teachers: Tiles<vertical::Rows<S, R>>,
    /// The classes that the teachers' exponentials are relative to.
    of_teachers: Tiles<Own>,
    /// What gradients need, if these are asked for.
    coefficients: Tiles<Coefficients>,
    /// What shares, or the teachers' exponentials, are multiplied by.
    scales: Tiles<PerLane<f64>>,
    /// The gradients of the targets' classes, for those that are not the own ones.
    targets: Tiles<PerLane<f64>>,
}

impl<S: Simd, R: Real + Element<Real = R>> Known<S, R> {
    #[inline(always)]
    fn nothing() -> Self {
        Self {
            own: Tiles::none(),
            rows: Tiles::none(),
            teachers: Tiles::none(),
            of_teachers: Tiles::none(),
            coefficients: Tiles::none(),
            scales: Tiles::none(),
            targets: Tiles::none(),
        }
    }

    /// Add the exponentials of all tiles, and what is summed of shares.
    #[inline(always)]
    fn weigh(
        &mut self,
        simd: S,
        logits: &Strip<R>,
        relative: &Strip<R>,
        capped: Option<&CappedTiles<S, R>>,
        shares: Option<&Shares>,
        weighed: &mut Tiles<Weighed<S>>,
    ) {
        let count = self.own.all().len();
        match (capped, shares) {
            (None, Some(shares)) => {
                for (tile, own) in self.own.all().iter().enumerate() {
                    weighed.push(Weighed::none(simd, &logits.tile(tile), own));
                }
                self.rows.add_shares(simd, logits, shares, weighed);
                for (tile, own) in self.own.all().iter().enumerate() {
                    if own.counted(simd) & !weighed.all()[tile].finite::<R>(simd) != 0 {
                        weighed.add_masked(simd, logits, shares, tile);
                    }
                }
            }
            (capped, shares) => {
                self.rows.add(simd, 0..count, relative);
                if let Some((capped, shares)) = capped.zip(shares) {
                    capped.shares(simd, self.own.all(), shares, weighed);
                }
            }
        }
        for tile in 0..count {
            if self.rows.all_mut()[tile].raise(simd) {
                self.rows.add(simd, tile..tile + 1, relative);
            }
        }
    }

    /// What is summed of teachers beside their pupils, and what that asks for.
    #[inline(always)]
    fn beside_teachers(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        pupils: &Strip<R>,
        teachers: &Strip<R>,
        beside: &mut Tiles<(Asked, Teacher)>,
    ) {
        for own in self.own.all() {
            self.of_teachers.push(*own);
        }
        lead::<S, R>(simd, teachers, &mut self.of_teachers);
        let mut moved = Tiles::<[PerLane<f64>; 2]>::none();
        for (tile, own) in self.of_teachers.all().iter().enumerate() {
            self.teachers.begin(simd, &teachers.tile(tile), own, plan.scale);
            let (pupil, teacher) = (pupils.tile(tile).pick(&own.class), teachers.tile(tile).pick(&own.class));
            moved.push(difference(&pupil, &teacher));
        }
        let count = self.own.all().len();
        let mut sums = Tiles::none();
        self.teachers.add_beside::<false>(simd, 0..count, teachers, pupils, moved.all(), &mut sums);
        for (tile, sums) in sums.all().iter().enumerate() {
            let (block, own) = (pupils.tile(tile), &self.own.all()[tile]);
            let of_teachers = &self.of_teachers.all()[tile].class;
            let [apart, _] = difference(&block.pick(of_teachers), &block.pick(&own.class));
            let found = self.teachers.all()[tile].found(simd);
            let mut sums = *sums;
            if !are_finite(&sums, own) {
                // Perhaps for masked classes. What is summed of the teachers alone does not change.
                let before = self.teachers.all()[tile];
                let again = tile..tile + 1;
                let mut masked = Tiles::none();
                self.teachers.add_beside::<true>(simd, again, teachers, pupils, moved.all(), &mut masked);
                sums = masked.all()[0];
                self.teachers.all_mut()[tile] = before;
            }
            let mut asked = Asked::nothing(0.0, None);
            let teacher = plan.of_teacher(simd, &found, &sums, &apart, &mut asked);
            beside.push((asked, teacher));
        }
    }

    /// Write the gradients of all classes, of logits that lie elsewhere or where these go; logits for rows that need the careful
    /// path.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // some tiles, what is known of them, and where they go
    fn write(
        &self,
        simd: S,
        plan: &Plan<R>,
        of_tile: impl Fn(usize) -> Range<usize>,
        likeness: &Likeness<R>,
        logits: Option<&Strip<R>>,
        capped: Option<&CappedTiles<S, R>>,
        out: &mut StripMut<R>,
    ) {
        let aim = match likeness {
            Likeness::Teacher(strip) => Aim::Teacher(&self.teachers, *strip),
            Likeness::Given(given) => plan.shares(*given).map_or(Aim::Own, Aim::Shares),
        };
        self.rows.write_less(simd, self.coefficients.all(), self.scales.all(), logits, &aim, out);
        if let Some(capped) = capped {
            capped.slope(simd, self.coefficients.all(), out);
        }
        if matches!(likeness, Likeness::Teacher(_)) {
            return;
        }
        for (tile, of) in self.coefficients.all().iter().enumerate() {
            let own = &self.own.all()[tile];
            out.tile(tile).write_own(own, of);
            let Some(labels) = plan.labels.filter(|_| plan.leads) else { continue };
            for (lane, row) in of_tile(tile).enumerate() {
                let counts = own.counts[lane] != 0.0 && of.careful >> lane & 1 == 0;
                if let Some(class) = labels.class(row).filter(|class| counts && *class != own.class[lane]) {
                    out.tile(tile).set(class, lane, Real::from_f64(self.targets.all()[tile][lane]));
                }
            }
        }
    }
}

/// Stages for numbers that are given. Borrowed, since a stage that is moved is copied.
struct StagesOfNumbers<'a> {
    singles: &'a mut Stage<f32>,
    doubles: &'a mut Stage<f64>,
}

impl<'a> StagesOfNumbers<'a> {
    /// Bring in those of some rows, if there are any; `None` if there is no memory for them.
    #[inline(always)]
    fn bring_in<S: Simd, R: Real>(self, simd: S, plan: &Plan<R>, rows: Range<usize>) -> Option<Given<'a>> {
        let Goal::Shares(Some(numbers)) = plan.goal else { return Some(Given::Nothing) };
        let classes = numbers.classes();
        // SAFETY: all tiles were brought in, and those that tiles of the logits have besides.
        unsafe {
            Some(if numbers.dtype().is_double() {
                if !bring_in_all(simd, self.doubles, numbers, rows, R::LANES, true) {
                    return None;
                }
                Given::Double(self.doubles.strip(classes).written())
            } else {
                if !bring_in_all(simd, self.singles, numbers, rows, R::LANES, true) {
                    return None;
                }
                Given::Single(self.singles.strip(classes).written())
            })
        }
    }
}

impl<'a, R: Real + Element<Real = R>> Plan<'a, R> {
    /// What rows that lie lane by lane in memory should be like, if that lies so, too.
    #[inline(always)]
    fn likeness(&self, first: usize, rows: usize) -> Option<Likeness<'a, R>> {
        let array = match self.goal {
            Goal::Own | Goal::Shares(None) | Goal::Listed(_) => return Some(Likeness::Given(Given::Nothing)),
            Goal::Shares(Some(array)) | Goal::Teacher(array) => array,
        };
        let (place, step) = array.neighbours(first, rows)?;
        let classes = array.classes();
        // SAFETY: the neighbours of each class are elements of the array, readable by the promise made to `Array::new`; of the
        // type that its dtype names.
        unsafe {
            Some(match (self.goal, array.dtype()) {
                (Goal::Teacher(_), dtype) if dtype == R::DTYPE => {
                    Likeness::Teacher(Strip::new(Block::new(place.cast(), step, classes), R::LANES))
                }
                (Goal::Shares(_), Dtype::F32) => {
                    let strip = Strip::new(Block::new(place.cast(), step, classes), f32::LANES);
                    Likeness::Given(Given::Single(strip))
                }
                (Goal::Shares(_), Dtype::F64) => {
                    let strip = Strip::new(Block::new(place.cast(), step, classes), f64::LANES);
                    Likeness::Given(Given::Double(strip))
                }
                _ => return None,
            })
        }
    }

    /// Whether such rows can be worked on where they lie.
    #[inline(always)]
    pub(super) fn lies_alike(&self, first: usize, rows: usize) -> bool {
        // Listed classes that are left out are masked, which they cannot be where they lie.
        let has_tails = matches!(self.goal, Goal::Listed(listed) if listed.has_tails());
        self.softcap.is_none() && !has_tails && self.likeness(first, rows).is_some()
    }
}

impl Rows<'_> {
    /// Work on rows of few classes, or that lie lane by lane.
    #[inline(always)]
    pub(super) fn staged_options<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        let classes = self.logits.classes();
        let of_tile = tiles_of::<R>(rows.clone());
        let mut stage = Stage::<R>::empty();
        let mut above = Stage::<R>::empty();
        let mut teachers = Stage::<R>::empty();
        let mut singles = Stage::<f32>::empty();
        let mut doubles = Stage::<f64>::empty();
        let numbers = StagesOfNumbers { singles: &mut singles, doubles: &mut doubles };
        let mut wings = Stage::<R>::empty();
        let roomy = bring_in_all(simd, &mut stage, self.logits, rows.clone(), R::LANES, plan.reads_two())
            && (plan.softcap.is_none() || above.reserve(rows.len(), classes))
            && wings.reserve(R::LANES, classes);
        let likeness = match plan.goal {
            Goal::Teacher(logits) => {
                bring_in_all(simd, &mut teachers, logits, rows.clone(), R::LANES, true).then(
                    // SAFETY: all tiles were brought in.
                    || Likeness::Teacher(unsafe { teachers.strip(classes) }.written()),
                )
            }
            _ => numbers.bring_in(simd, plan, rows.clone()).map(Likeness::Given),
        };
        let Some(likeness) = likeness.filter(|_| roomy) else {
            return self.long_options(simd, plan, rows, sum);
        };
        let mut known = Known::nothing();
        // SAFETY: all tiles were brought in.
        let mut strip = unsafe { stage.strip(classes) };
        if self.listed.has_tails() {
            for tile in 0..rows.len().div_ceil(R::LANES) {
                self.listed.mask(of_tile(tile), &mut strip.tile(tile));
            }
        }
        let Some(capped) = plan.capped_tiles(simd, &strip.read()) else {
            self.options(simd, plan, rows.clone(), &strip.read(), None, &likeness, &mut known, sum)?;
            if self.gradient.is_some() {
                known.write(simd, plan, &of_tile, &likeness, None, None, &mut strip);
                self.listed.write_tiles(simd, plan, &known, &of_tile, &mut strip);
                self.bring_out(simd, rows, &mut stage, &mut wings, &known);
            }
            return Ok(());
        };
        // SAFETY: all tiles are written before they are read.
        let mut room = unsafe { above.strip(classes) };
        self.options(simd, plan, rows.clone(), &strip.read(), Some(&mut room), &likeness, &mut known, sum)?;
        if self.gradient.is_some() {
            known.write(simd, plan, &of_tile, &likeness, None, Some(&capped), &mut room);
            self.bring_out(simd, rows, &mut above, &mut wings, &known);
        }
        Ok(())
    }

    /// Bring the gradients of all tiles out.
    #[inline(never)]
    fn bring_out<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        stage: &mut Stage<R>,
        wings: &mut Stage<R>,
        known: &Known<S, R>,
    ) {
        let of_tile = tiles_of::<R>(rows);
        for (tile, of) in known.coefficients.all().iter().enumerate() {
            if let Some(out) = &mut self.gradient {
                // SAFETY: its gradients were written.
                unsafe { stage.bring_out(simd, tile, out, of_tile(tile), wings, self.store[0]) }
            }
            self.careful_gradients(simd, of_tile(tile).start, of.careful);
        }
    }

    /// Work on tiles of rows that lie lane by lane in memory.
    #[inline(always)]
    pub(super) fn strip_options<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        let (logits, of_tile) = (self.logits, tiles_of::<R>(rows.clone()));
        let strip = strip_of::<R>(logits, &rows);
        let likeness = plan.likeness(rows.start, rows.len()).expect("asked before");
        let mut known = Known::nothing();
        self.options(simd, plan, rows.clone(), &strip, None, &likeness, &mut known, sum)?;
        let Some(out) = &mut self.gradient else { return Ok(()) };
        let mut out = strip_mut_of::<R>(out, &rows);
        known.write(simd, plan, &of_tile, &likeness, Some(&strip), None, &mut out);
        self.listed.write_tiles(simd, plan, &known, &of_tile, &mut out);
        for (tile, of) in known.coefficients.all().iter().enumerate() {
            self.careful_gradients(simd, of_tile(tile).start, of.careful);
        }
        Ok(())
    }

    /// The rows of a tile that count, with a class that each is asked for, if it is.
    #[inline(always)]
    fn counted<S: Simd, R: Real + Element<Real = R>>(&self, simd: S, plan: &Plan<R>, rows: Range<usize>) -> Own {
        match plan.goal {
            Goal::Listed(_) => self.listed.own(rows),
            _ => plan.counted(simd, self.problem, rows),
        }
    }

    /// The losses of some tiles, taken to where they go, and what their gradients need. Under a cap, `room` gets by how much the
    /// capped logits are above those of the own classes.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // some rows, what they are, and what becomes known
    fn options<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        strip: &Strip<R>,
        room: Option<&mut StripMut<R>>,
        likeness: &Likeness<R>,
        known: &mut Known<S, R>,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        let count = rows.len().div_ceil(R::LANES);
        let of_tile = tiles_of::<R>(rows.clone());
        for tile in 0..count {
            known.own.push(self.counted(simd, plan, of_tile(tile)));
        }
        if plan.leads {
            lead::<S, R>(simd, strip, &mut known.own);
        }
        let capped = plan.capped_tiles(simd, strip);
        let above = room.zip(capped.as_ref()).map(|(room, capped)| {
            capped.write(simd, known.own.all(), room);
            room.read()
        });
        let relative = above.as_ref().unwrap_or(strip);
        for (tile, own) in known.own.all().iter().enumerate() {
            known.rows.begin(simd, &relative.tile(tile), own, plan.scale);
        }
        let shares = match likeness {
            Likeness::Teacher(_) => None,
            Likeness::Given(given) => plan.shares(*given),
        };
        let (mut weighed, mut beside) = (Tiles::none(), Tiles::<(Asked, Teacher)>::none());
        if let Likeness::Teacher(teachers) = likeness {
            known.rows.add(simd, 0..count, strip);
            known.beside_teachers(simd, plan, strip, teachers, &mut beside);
        } else {
            known.weigh(simd, strip, relative, capped.as_ref(), shares.as_ref(), &mut weighed);
            let mut bad = 0;
            for (weighed, own) in weighed.all().iter().zip(known.own.all()) {
                bad |= weighed.bad::<R>(simd) & own.counted(simd);
            }
            if bad != 0 {
                self.problem.look_at(simd, rows.clone(), self.logits.classes())?;
            }
        }
        for tile in 0..count {
            let (found, own) = (known.rows.all()[tile].found(simd), &known.own.all()[tile]);
            let rows = of_tile(tile);
            let slopes = if let Some((asked, teacher)) = beside.all_mut().get_mut(tile) {
                self.finish_options(simd, plan, rows, own, found, asked, Some(teacher), sum)
            } else {
                let mut asked = Asked::nothing(self.problem.z_loss, self.problem.focus);
                let pick = |class: &PerLane<usize>| strip.tile(tile).pick(class);
                plan.ask(simd, self.problem, rows.clone(), own, pick, &mut asked);
                if let Some(shares) = &shares {
                    plan.weigh(&weighed.all()[tile].found::<R>(simd, plan.total), &mut asked);
                    if self.grad_output.is_some() {
                        let pick = |class: &PerLane<usize>| shares.pick::<R>(tile, class);
                        plan.pick_shares(simd, self.problem, rows.clone(), own, pick, &mut asked);
                    }
                }
                self.finish_options(simd, plan, rows, own, found, &mut asked, None, sum)
            };
            if let Some(slopes) = slopes {
                known.coefficients.push(slopes.coefficients);
                known.scales.push(slopes.scales);
                known.targets.push(slopes.targets);
            }
        }
        Ok(())
    }

    /// Write the diagonals of the Hessians of rows that are brought onto a stage; whether there was memory for it.
    #[inline(always)]
    pub(super) fn staged_hessians<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
    ) -> Found<bool> {
        let has_kernel = plan.softcap.is_none() && !matches!(plan.goal, Goal::Teacher(_) | Goal::Listed(_));
        let Some(grad_output) = self.grad_output.filter(|_| has_kernel) else { return Ok(false) };
        let classes = self.logits.classes();
        let mut stage = Stage::<R>::empty();
        let mut singles = Stage::<f32>::empty();
        let mut doubles = Stage::<f64>::empty();
        let numbers = StagesOfNumbers { singles: &mut singles, doubles: &mut doubles };
        if !bring_in_all(simd, &mut stage, self.logits, rows.clone(), R::LANES, plan.reads_two()) {
            return Ok(false);
        }
        let Some(given) = numbers.bring_in(simd, plan, rows.clone()) else { return Ok(false) };
        let mut known = Known::nothing();
        // SAFETY: all tiles were brought in.
        let mut strip = unsafe { stage.strip(classes) };
        let of_tile = tiles_of::<R>(rows.clone());
        for tile in 0..rows.len().div_ceil(R::LANES) {
            known.own.push(plan.counted(simd, self.problem, of_tile(tile)));
        }
        lead::<S, R>(simd, &strip.read(), &mut known.own);
        for (tile, own) in known.own.all().iter().enumerate() {
            known.rows.begin(simd, &strip.read().tile(tile), own, plan.scale);
        }
        let shares = plan.shares(given);
        let mut weighed = Tiles::none();
        known.weigh(simd, &strip.read(), &strip.read(), None, shares.as_ref(), &mut weighed);
        for tile in 0..known.own.all().len() {
            let losses = finish::losses::<S, R>(simd, &known.rows.all()[tile].found(simd), plan.scale.shortfall());
            let mass = shares.map_or([0.0; MOST_LANES], |_| weighed.all()[tile].found::<R>(simd, plan.total).mass);
            let mut scales = scales(simd, self.problem, grad_output, self.divisor, of_tile(tile));
            for (lane, row) in of_tile(tile).enumerate() {
                let class = plan.labels.and_then(|labels| labels.class(row));
                let point = class.map_or(0.0, |class| {
                    (1.0 - self.problem.label_smoothing)
                        * self.problem.weight.as_ref().map_or(1.0, |weight| weight[class])
                });
                scales[lane] *= (point + mass[lane]) / plan.temperature / plan.temperature;
            }
            known.coefficients.push(finish::variances::<S, R>(simd, &losses, &scales));
            known.scales.push(scales);
        }
        known.rows.write_variances(simd, known.coefficients.all(), known.scales.all(), &mut strip);
        for (tile, of) in known.coefficients.all().iter().enumerate() {
            strip.tile(tile).write_own(&known.own.all()[tile], of);
        }
        // Rows of few classes have room in the wings.
        let mut wings = Stage::empty();
        for (tile, of) in known.coefficients.all().iter().enumerate() {
            let Some(out) = &mut self.hessian else { return Ok(true) };
            // SAFETY: its values were written.
            unsafe { stage.bring_out(simd, tile, out, of_tile(tile), &mut wings, self.store[1]) }
            for lane in lanes_of(of.careful) {
                let row = of_tile(tile).start + lane;
                self.careful_hessians(simd, row..row + 1)?;
            }
        }
        Ok(true)
    }

    /// Work on rows one by one.
    #[inline(never)]
    pub(super) fn long_options<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        for first in rows.clone().step_by(R::LANES) {
            self.some_long_options(simd, plan, first..rows.end.min(first + R::LANES), sum)?;
        }
        Ok(())
    }

    /// Work on rows one by one, no more than there are lanes, with what is once a row for all of them.
    #[inline(never)]
    fn some_long_options<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        let mut own = self.counted(simd, plan, rows.clone());
        let (mut found, mut of_teachers) = (Sums::none(), Sums::none());
        let mut weighed = shares::Found { mass: [0.0; MOST_LANES], sum: [0.0; MOST_LANES] };
        let (mut apart, mut teacher_classes) = ([0.0; MOST_LANES], [0; MOST_LANES]);
        for (lane, number) in rows.clone().enumerate().filter(|(lane, _)| own.counts[*lane] != 0.0) {
            let row = self.logits.row(number);
            if plan.leads {
                own.class[lane] = horizontal::leader::<S, R>(simd, row).0;
            }
            let class = own.class[lane];
            let logit = row.get(class);
            let shares = plan.row_shares(number);
            let shares = shares.as_ref().map(|shares| (shares, plan.total));
            let of_logit = <R as Real>::from_f64(logit);
            let (of_row, weight) = match (plan.goal, plan.softcap) {
                (Goal::Listed(_), _) => {
                    let of_row = horizontal::sum(simd, row, self.listed.apart(number), of_logit, plan.scale);
                    (of_row, Weight { mass: 0.0, sum: 0.0, bad: false })
                }
                (_, Some(softcap)) => horizontal::sum_capped(simd, row, class, of_logit, shares, plan.scale, softcap),
                (_, None) => horizontal::sum_shares(simd, row, class, of_logit, shares, plan.scale),
            };
            found.set(lane, &of_row);
            if weight.bad {
                self.problem.look_at(simd, number..number + 1, self.logits.classes())?;
            }
            (weighed.mass[lane], weighed.sum[lane]) = (weight.mass, weight.sum);
            if let Goal::Teacher(teachers) = plan.goal {
                let teacher = teachers.row(number);
                let class = horizontal::leader::<S, R>(simd, teacher).0;
                let teacher_logit = teacher.get(class);
                let moved = two_sum(row.get(class), -teacher_logit);
                (apart[lane], teacher_classes[lane]) = (row.get(class) - logit, class);
                let logit = <R as Real>::from_f64(teacher_logit);
                let (of_row, sum) = horizontal::sum_beside(simd, [teacher, row], class, logit, moved, plan.scale);
                of_teachers.set(lane, &of_row);
                weighed.sum[lane] = sum;
            }
        }
        let pick = |class: &PerLane<usize>| {
            let mut picked = [0.0; MOST_LANES];
            for (lane, number) in rows.clone().enumerate() {
                picked[lane] = self.logits.row(number).get(class[lane]);
            }
            picked
        };
        let mut asked = Asked::nothing(self.problem.z_loss, self.problem.focus);
        if !matches!(plan.goal, Goal::Teacher(_)) {
            plan.ask(simd, self.problem, rows.clone(), &own, pick, &mut asked);
        }
        let teacher = match plan.goal {
            Goal::Own | Goal::Listed(_) => None,
            Goal::Shares(_) => {
                let here = |class: &PerLane<usize>| {
                    let mut picked = [0.0; MOST_LANES];
                    for (lane, number) in rows.clone().enumerate() {
                        picked[lane] = plan.row_shares(number).map_or(0.0, |shares| shares.of(simd, class[lane]));
                    }
                    picked
                };
                plan.weigh(&weighed, &mut asked);
                plan.pick_shares(simd, self.problem, rows.clone(), &own, here, &mut asked);
                None
            }
            Goal::Teacher(_) => Some(plan.of_teacher(simd, &of_teachers, &weighed.sum, &apart, &mut asked)),
        };
        let octaves = found.octaves;
        let Some(slopes) =
            self.finish_options(simd, plan, rows.clone(), &own, found, &mut asked, teacher.as_ref(), sum)
        else {
            return Ok(());
        };
        let gradients = RowGradients {
            own: &own,
            octaves: &octaves,
            of: &slopes.coefficients,
            scales: &slopes.scales,
            targets: &slopes.targets,
            teachers: &teacher_classes,
        };
        self.write_row_by_row::<S, R>(simd, plan, rows, &gradients);
        Ok(())
    }

    /// Write the gradients of some rows, no more than there are lanes, one after the other.
    #[inline(never)]
    pub(super) fn write_row_by_row<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        gradients: &RowGradients,
    ) {
        let Some(out) = &mut self.gradient else { return };
        let RowGradients { own, of, .. } = *gradients;
        for (lane, number) in rows.clone().enumerate().filter(|(lane, _)| of.careful >> lane & 1 == 0) {
            if own.counts[lane] == 0.0 {
                out.row(number).fill(0.0);
                continue;
            }
            let (row, scale) = (self.logits.row(number), gradients.scales[lane]);
            let mut own = Some((own.class[lane], of.own[lane]));
            let logit = <R as Real>::from_f64(row.get(gradients.own.class[lane]));
            let less = match plan.goal {
                Goal::Own | Goal::Listed(_) => Less::Nothing,
                Goal::Shares(_) => plan.row_shares(number).map_or(Less::Nothing, |shares| Less::Shares(shares, scale)),
                Goal::Teacher(teachers) => {
                    own = None;
                    let teacher = teachers.row(number);
                    Less::Teacher(teacher, <R as Real>::from_f64(teacher.get(gradients.teachers[lane])), scale)
                }
            };
            let target = plan.labels.filter(|_| plan.leads).and_then(|labels| labels.class(number));
            let target = target.filter(|class| *class != gradients.own.class[lane]);
            let gradient = Gradient {
                logit,
                octaves: gradients.octaves[lane],
                factor: of.factor[lane],
                scale: plan.scale,
                softcap: plan.softcap,
                store: self.store[0],
            };
            let mut few = [own, target.map(|class| (class, gradients.targets[lane]))];
            few.sort_unstable_by_key(|exception| exception.map_or(usize::MAX, |(class, _)| class));
            let few = few.map(|exception| exception.unwrap_or_default());
            let count = usize::from(own.is_some()) + usize::from(target.is_some());
            let exceptions = match plan.goal {
                Goal::Listed(_) => {
                    let scales = [gradients.targets[lane], scale];
                    self.listed.gradients(simd, number, plan.temperature, of.own[lane], scales)
                }
                _ => &few[..count],
            };
            horizontal::write(simd, row, out.row(number), &gradient, exceptions, &less);
        }
        self.careful_gradients(simd, rows.start, of.careful);
    }

    /// Take the losses of some rows to where they go, and find out what their gradients need, if these are asked for.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // some rows, and all that is known of them
    fn finish_options<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        own: &Own,
        mut found: Sums,
        asked: &mut Asked,
        teacher: Option<&Teacher>,
        sum: &mut PerLane<f64>,
    ) -> Option<Slopes> {
        if let Some(teacher) = teacher {
            found.suits &= !teacher.careful;
        }
        let mut losses = finish::losses::<S, R>(simd, &found, plan.scale.shortfall());
        let mut listed = None;
        if matches!(plan.goal, Goal::Listed(_)) {
            listed = self.listed.ask(simd, rows.clone(), plan.temperature, asked);
            if let Some(listed) = listed.as_mut().filter(|_| self.listed.has_tails()) {
                listed.join::<S, R>(simd, &mut losses, &asked.mass, plan.scale.shortfall());
            }
        }
        let (mut loss, careful) = finish::losses_asked(simd, &losses, asked, listed.as_ref());
        if let Some(weights) = &self.problem.sample_weight {
            for (loss, weight) in loss.iter_mut().zip(&weights[rows.clone()]) {
                *loss = product(*weight, *loss);
            }
        }
        // What the weight of a row is that does not count does not matter.
        for (loss, counts) in loss.iter_mut().zip(&own.counts) {
            *loss = if *counts == 0.0 { 0.0 } else { *loss };
        }
        for lane in lanes_of(careful) {
            loss[lane] = self.careful_row(simd, rows.start + lane, false);
        }
        if let Some(out) = &mut self.losses {
            out.set(rows.start, &loss[..rows.len()]);
        }
        add_by_row(sum, rows.start - self.range.start, &loss[..rows.len()]);
        let grad_output = self.grad_output?;
        let mut scales = scales(simd, self.problem, grad_output, self.divisor, rows);
        divide(&mut scales, plan.temperature);
        let (mut coefficients, mut targets) =
            finish::coefficients_asked::<S, R>(simd, &losses, asked, listed.as_ref(), &scales);
        coefficients.careful |= careful;
        if plan.softcap.is_some() {
            for lane in 0..MOST_LANES {
                coefficients.own[lane] *= asked.slopes[0][lane];
                targets[lane] *= asked.slopes[1][lane];
            }
        }
        if let Some(teacher) = teacher {
            for (lane, scale) in scales.iter_mut().enumerate() {
                // In this order, as the pupil's: of equal logits nothing is left.
                *scale = *scale * teacher.factors[0][lane] * teacher.factors[1][lane];
                let size = scale.abs();
                let fine = *scale == 0.0 || size >= R::SMALLEST_NORMAL && size.is_finite();
                coefficients.careful |= u32::from(own.counts[lane] != 0.0 && !fine) << lane;
            }
        }
        Some(Slopes { coefficients, scales, targets })
    }
}

impl Batch<'_> {
    /// Write the gradients of the listed classes of some tiles, if there are such.
    #[inline(always)]
    fn write_tiles<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        known: &Known<S, R>,
        of_tile: impl Fn(usize) -> Range<usize>,
        out: &mut StripMut<R>,
    ) {
        if !matches!(plan.goal, Goal::Listed(_)) {
            return;
        }
        for (tile, of) in known.coefficients.all().iter().enumerate() {
            let (masses, scales) = (&known.targets.all()[tile], &known.scales.all()[tile]);
            self.write_tile(simd, of_tile(tile), plan.temperature, of, masses, scales, &mut out.tile(tile));
        }
    }
}

/// What the gradients of some rows need.
struct Slopes {
    coefficients: Coefficients,
    /// What shares, or the teachers' exponentials, are multiplied by.
    scales: PerLane<f64>,
    /// The gradients of the targets' classes, for those that are not the own ones.
    targets: PerLane<f64>,
}

/// Make the own classes of some tiles those with the largest logits.
#[inline(always)]
pub(super) fn lead<S: Simd, R: Real + Element<Real = R>>(simd: S, strip: &Strip<R>, own: &mut Tiles<Own>) {
    let mut leaders = Tiles::<Leader<S, R>>::none();
    leaders.find(simd, strip, own.all().len(), strip.classes());
    for (own, leader) in own.all_mut().iter_mut().zip(leaders.all()) {
        own.class = leader.classes();
    }
}

/// Differences as sums of two.
#[inline(always)]
fn difference(a: &PerLane<f64>, b: &PerLane<f64>) -> [PerLane<f64>; 2] {
    let (mut high, mut low) = (*a, *b);
    for (high, low) in high.iter_mut().zip(&mut low) {
        [*high, *low] = two_sum(*high, -*low);
    }
    [high, low]
}

/// Whether the numbers of all rows that count are finite.
#[inline(always)]
fn are_finite(numbers: &PerLane<f64>, own: &Own) -> bool {
    numbers.iter().zip(&own.counts).all(|(number, counts)| *counts == 0.0 || number.is_finite())
}
